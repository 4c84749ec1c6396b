# SPDX-License-Identifier: Apache-2.0
"""How Prometheus is asked: as whom, by which path, and with which limits."""

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoscaler.adapters.prometheus import PrometheusClient
from autoscaler.adapters.prometheus import client as limits
from autoscaler.errors import GiveUp, RetryLater
from autoscaler.prometheus_settings import PrometheusSettings
from tests.adapters.prometheus.between import Answer, Asked, Between, saying

ONE = "vector(1)"


async def asked(between: Between, url: str = "", **settings: Any) -> Asked:
    """What arrives when a client with these settings asks for one number, which it gets."""
    client = PrometheusClient(PrometheusSettings(url or between.url, **settings))
    try:
        (sample,) = await client.query(ONE)
    finally:
        client.close()
    assert sample.value == 1
    return between.asked[-1]


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


async def test_a_query_says_that_a_part_of_the_answer_is_not_enough(between: Between) -> None:
    """To Thanos and to VictoriaMetrics; Prometheus takes no notice of either."""
    form = (await asked(between)).form
    assert form["query"] == ONE
    assert (form["partial_response"], form["deny_partial_response"]) == ("false", "1")


async def test_a_path_stands_before_the_api(between: Between) -> None:
    """Mimir's is /prometheus."""
    seen = await asked(between, f"{between.url}/prometheus")
    assert seen.path == "/prometheus/api/v1/query"


async def test_nobody_logs_in_where_nothing_says_so(between: Between) -> None:
    """Not even by a .netrc or a proxy of the environment."""
    assert "Authorization" not in (await asked(between)).headers


async def test_a_token_is_read_anew_for_every_query(between: Between, tmp_path: Path) -> None:
    """What mounts it replaces it while we run."""
    token = written(tmp_path, "token", "first\n")
    client = PrometheusClient(PrometheusSettings(between.url, bearer_token_file=token))
    await client.query(ONE)
    token.write_text("second\n")
    await client.query(ONE)
    token.unlink()
    with pytest.raises(RetryLater, match=f"{token}: No such file"):
        await client.query(ONE)
    client.close()
    said = [one.headers["Authorization"] for one in between.asked]
    assert said == ["Bearer first", "Bearer second"]


async def test_a_token_is_never_repeated(between: Between, tmp_path: Path) -> None:
    """A file with more than a token is told by its name alone."""
    token = written(tmp_path, "token", "sesame\nopen")
    client = PrometheusClient(PrometheusSettings(between.url, bearer_token_file=token))
    with pytest.raises(RetryLater) as caught:
        await client.query(ONE)
    client.close()
    assert str(token) in str(caught.value)
    assert "sesame" not in str(caught.value)


async def test_a_name_and_a_password_log_in(between: Between, tmp_path: Path) -> None:
    """Whatever characters they are of."""
    password = written(tmp_path, "password", "pässword\n")
    seen = await asked(between, username="tide", password_file=password)
    assert seen.headers["Authorization"] == "Basic " + b64encode("tide:pässword".encode()).decode()


async def test_headers_name_the_tenant(between: Between) -> None:
    """As Mimir wants it."""
    seen = await asked(between, headers={"X-Scope-OrgID": "team"})
    assert seen.headers["X-Scope-OrgID"] == "team"


async def test_an_endless_answer_ends_by_its_length(
    between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or by its time, whichever comes first."""
    monkeypatch.setattr(limits, "ANSWER_MAX_BYTES", 1024 * 1024)

    def spoil(_: Answer) -> Answer:
        return Answer(200, b"", more=(b" " * 65536 for _ in range(10**6)), length=10**12)

    between.spoil = spoil
    client = PrometheusClient(PrometheusSettings(between.url))
    with pytest.raises(RetryLater, match="longer than 1048576 bytes"):
        await client.query(ONE)
    client.close()


async def test_headers_that_never_end_hold_a_few_threads_and_no_more() -> None:
    """Each waits a while, none for ever; then nothing more is begun until they have ended."""
    drips = Drips()
    client = PrometheusClient(PrometheusSettings(drips.url, timeout_s=0.1))
    waiting = [client.query(ONE) for _ in range(limits.AT_ONCE)]
    for trouble in await asyncio.gather(*waiting, return_exceptions=True):
        assert "no whole answer within" in str(trouble)
    with pytest.raises(RetryLater, match="have not ended yet"):
        await client.query(ONE)
    drips.stop()
    client.close()


class Drips:
    """Sends a byte of a header now and then."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="drips")
        self._thread.start()

    def _serve(self) -> None:
        self._server.settimeout(0.02)
        open_ = []
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                one, _ = self._server.accept()
                one.sendall(b"HTTP/1.1 200 OK\r\nA: ")
                open_.append(one)
            for one in open_:
                one.sendall(b"b")
        for one in (*open_, self._server):
            one.close()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


async def test_a_wrong_query_is_refused_in_prometheus_own_words(between: Between) -> None:
    """So that who wrote it finds the place."""
    client = PrometheusClient(PrometheusSettings(between.url))
    with pytest.raises(GiveUp, match="unclosed left parenthesis"):
        await client.query("sum(up")
    client.close()


@pytest.fixture
def papers(tmp_path: Path) -> Path:
    """A certificate authority, a server's certificate and a client's."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl on the PATH")

    def run(*words: str) -> None:
        subprocess.run([openssl, *words], cwd=tmp_path, check=True, capture_output=True)  # noqa: S603

    made = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    run(*made, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority")
    for name in ("server", "client"):
        run(
            *made,
            *("-CA", "ca.crt", "-CAkey", "ca.key", "-keyout", f"{name}.key", "-out", f"{name}.crt"),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"),
        )
    return tmp_path


@pytest.fixture
def guarded(between: Between, papers: Path) -> Iterator[Between]:
    """Speaks TLS, and only with those whose certificate it knows."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(papers / "server.crt", papers / "server.key")
    tls.load_verify_locations(papers / "ca.crt")
    tls.verify_mode = ssl.CERT_REQUIRED
    guarded = Between(int(between.url.rsplit(":", 1)[1]), tls=tls)
    yield guarded
    guarded.stop()


async def test_both_sides_show_a_certificate(guarded: Between, papers: Path) -> None:
    """And ours is taken."""
    seen = await asked(
        guarded,
        ca_file=papers / "ca.crt",
        cert_file=papers / "client.crt",
        key_file=papers / "client.key",
    )
    assert seen.form["query"] == ONE


async def test_a_server_that_nobody_vouches_for_is_not_asked(
    guarded: Between, papers: Path
) -> None:
    """Unless the settings say so."""
    ours: dict[str, Any] = {"cert_file": papers / "client.crt", "key_file": papers / "client.key"}
    with pytest.raises(RetryLater, match=r"TLS: .*certificate.*; check the \*-file keys"):
        await asked(guarded, **ours)
    assert guarded.asked == []
    await asked(guarded, **ours, insecure_skip_verify=True)


@pytest.mark.parametrize(
    "body",
    [
        '{"status":"success","data":"result"}',
        '{"status":"success","data":{"result":{}}}',
        '{"status":"success","data":{"result":null}}',
        '{"status":"success","data":{"result":[{"metric":null,"value":[1,"2"]}]}}',
        '{"status":"success","data":{"result":[{"metric":["a"],"value":[1,"2"]}]}}',
        '{"status":"success","data":{"result":[1,2,3]},"warnings":{"a":"b"}}',
    ],
)
async def test_an_answer_of_another_shape_is_refused_and_ends_nothing(
    between: Between, body: str
) -> None:
    """What asks goes on: anything but a refusal would end it."""
    between.spoil = saying(200, body)
    client = PrometheusClient(PrometheusSettings(between.url))
    with pytest.raises((GiveUp, RetryLater)):
        await client.query(ONE)
    client.close()
