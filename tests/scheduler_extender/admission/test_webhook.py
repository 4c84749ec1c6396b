# SPDX-License-Identifier: Apache-2.0
"""The webhook over real HTTPS: what it answers, and that it takes a new certificate."""

import asyncio
import hashlib
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import orjson
import pytest
from typer.testing import CliRunner

from scheduler_extender.admission.app import MOST_BODY_BYTES
from scheduler_extender.admission.certificates import Certificate
from scheduler_extender.admission.cli import app as command
from scheduler_extender.admission.process import Sockets, serve
from scheduler_extender.admission.settings import Settings
from scheduler_extender.errors import BadInput
from scheduler_extender.listening import bound
from tests.scheduler_extender.admission.pods import ASKING, a_pod, a_review

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl, which makes the certificate, is not here"
)


def write_pair(folder: Path, *, name: str = "webhook") -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key, new at every call."""
    cert, key = folder / "tls.crt", folder / "tls.key"
    subprocess.run(  # noqa: S603 - our own words
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *(
                "-nodes",
                "-days",
                "2",
                "-subj",
                f"/CN={name}",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
            ),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


class Webhook:
    def __init__(self, port: int, certificate: Certificate, folder: Path) -> None:
        self.url = f"https://127.0.0.1:{port}"
        self.port = port
        self.certificate = certificate
        self.folder = folder

    def client(self) -> httpx.AsyncClient:
        """One that trusts the certificate that is in the files now, and no other."""
        trusted = ssl.create_default_context(cafile=str(self.folder / "tls.crt"))
        return httpx.AsyncClient(verify=trusted, base_url=self.url)

    async def served(self) -> str:
        """A digest of the certificate that a new connection is shown."""
        loose = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        loose.check_hostname, loose.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=loose)
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        await writer.wait_closed()
        return hashlib.sha256(shown).hexdigest()


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Webhook]:
    cert, key = write_pair(folder)
    settings = Settings(cert, key)
    certificate, taken, stop = Certificate(cert, key), bound("127.0.0.1", 0), asyncio.Event()
    port = taken.getsockname()[1]
    serving = asyncio.create_task(serve(settings, certificate, Sockets(taken), stop))
    try:
        yield Webhook(port, certificate, folder)
    finally:
        stop.set()
        async with asyncio.timeout(15):
            await serving


@needs_openssl
async def test_a_review_is_answered_over_https_and_counted(tmp_path: Path) -> None:
    async with running(tmp_path) as webhook, webhook.client() as client:
        answer = await client.post("/mutate", content=a_review(a_pod(annotations=ASKING)))
        refused = await client.post("/validate", content=a_review(a_pod(annotations=ASKING)))
        health = await client.get("/healthz")
        metrics = (await client.get("/metrics")).text
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json()["response"]["patchType"] == "JSONPatch"
    assert refused.status_code == 200
    assert not refused.json()["response"]["allowed"]
    assert health.status_code == 200
    assert 'reviews_total{outcome="changed",webhook="mutate"} 1.0' in metrics
    assert 'reviews_total{outcome="refused",webhook="validate"} 1.0' in metrics
    [ends] = re.findall(r"(?m)^tidegate_admission_certificate\w+ (\S+)$", metrics)
    assert float(ends) - time.time() == pytest.approx(2 * 86400, abs=600)


@needs_openssl
@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        pytest.param(b"{", 400, "no AdmissionReview", id="broken JSON"),
        pytest.param(a_review(a_pod(), version="v2"), 400, "admissionReviewVersions", id="version"),
        pytest.param(b" " * (MOST_BODY_BYTES + 1), 413, "at most", id="too long"),
    ],
)
async def test_what_cannot_be_judged_is_no_200(
    tmp_path: Path, body: bytes, status: int, words: str
) -> None:
    async with running(tmp_path) as webhook, webhook.client() as client:
        answer = await client.post("/validate", content=body)
        other = await client.get("/validate")
    assert (answer.status_code, other.status_code) == (status, 404)
    assert words in answer.text


@needs_openssl
async def test_a_new_certificate_is_taken_while_connections_stay(tmp_path: Path) -> None:
    async with running(tmp_path) as webhook, webhook.client() as old:
        assert (await old.get("/healthz")).status_code == 200
        before = await webhook.served()
        write_pair(tmp_path)
        webhook.certificate.renew()
        async with webhook.client() as new:
            assert (await new.get("/healthz")).status_code == 200
        assert await webhook.served() != before
        assert (await old.get("/healthz")).status_code == 200


@needs_openssl
async def test_files_that_do_not_fit_together_leave_the_old_certificate(tmp_path: Path) -> None:
    async with running(tmp_path) as webhook:
        before = await webhook.served()
        new = tmp_path / "new"
        new.mkdir()
        cert, key = write_pair(new)
        (tmp_path / "tls.crt").write_bytes(cert.read_bytes())
        webhook.certificate.renew()
        assert await webhook.served() == before
        (tmp_path / "tls.key").write_bytes(key.read_bytes())
        webhook.certificate.renew()
        assert await webhook.served() != before


@needs_openssl
def test_a_certificate_without_its_key_is_refused_at_the_start(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    cert, _ = write_pair(tmp_path)
    _, key = write_pair(other)
    with pytest.raises(BadInput, match="name a certificate in PEM and the key that belongs to it"):
        Certificate(cert, key)


@needs_openssl
@pytest.mark.slow
async def test_the_command_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    cert, key = write_pair(tmp_path)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scheduler_extender.admission.cli", "--listen", "127.0.0.1:0"),
        *("--cert-file", str(cert), "--key-file", str(key)),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            started = orjson.loads(await process.stderr.readline())
        trusted = ssl.create_default_context(cafile=str(cert))
        async with httpx.AsyncClient(verify=trusted) as client:
            answer = await client.get(f"https://{started['listen']}/readyz")
    finally:
        process.terminate()
        _, said = await process.communicate()
    assert answer.status_code == 200
    assert process.returncode == 0, said.decode()


def test_the_command_tells_every_problem_and_exits_with_2(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    for words in (
        ["--cert-file", missing, "--key-file", missing, "--scheduler-name", "A b"],
        ["--kubeconfig", missing],
        ["--self-signed", "A b", "--cert-file", missing, "--key-file", missing],
    ):
        result = CliRunner().invoke(command, words)
        assert result.exit_code == 2
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 3
        assert all(line.startswith("tidegate admission: --") for line in lines)
