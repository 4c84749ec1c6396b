# SPDX-License-Identifier: Apache-2.0
"""Asks one Prometheus. Only this file knows `prometheus_api_client`, and threads.

An answer counts whole or not at all: one with warnings, of a part of the stores, too long or too
late is none. `RetryLater`: the server is in trouble; `GiveUp`: it refuses this one query.
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson
import requests
import urllib3
from prometheus_api_client import PrometheusConnect
from requests.auth import AuthBase, HTTPBasicAuth
from urllib3.util.retry import Retry

from autoscaler.errors import GiveUp, RetryLater
from autoscaler.prometheus_settings import PrometheusSettings
from autoscaler.text import shortened

AT_ONCE: Final = 4  # queries; each keeps a thread
ANSWER_MAX_BYTES: Final = 64 * 1024 * 1024  # ten times what 10,000 pods give
READ_BYTES: Final = 256 * 1024
# What a store that is out of reach does to an answer: Thanos' and VictoriaMetrics' names for
# "rather none". Prometheus and Mimir leave unknown parameters alone.
WHOLE_ONLY: Final = {"partial_response": "false", "deny_partial_response": "1"}
# Our own account of a refused query; all else that is not 200 concerns the server.
REFUSED: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
NO_LOGIN: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class Sample(NamedTuple):
    """One value of a vector; `at_s`: when it was evaluated, by Prometheus' clock (Unix time)."""

    labels: Mapping[str, str]
    value: float
    at_s: float


class PrometheusClient:
    """One Prometheus, asked by the `prometheus_api_client` in a few threads of our own."""

    def __init__(self, settings: PrometheusSettings) -> None:
        self._settings = settings
        session = _Session()
        if settings.insecure_skip_verify:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
            session.verify = False
        elif settings.ca_file is not None:
            session.verify = str(settings.ca_file)
        if settings.cert_file is not None and settings.key_file is not None:
            session.cert = (str(settings.cert_file), str(settings.key_file))
        self._connect = PrometheusConnect(
            settings.url,
            headers={"Accept-Encoding": "identity", **settings.headers},
            retry=Retry(total=0),  # the next round asks again
            auth=_login(settings),
            session=session,
            timeout=settings.timeout_s,
            method="POST",  # what is asked is longer than some proxies let a URL be
        )
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="prometheus")
        self._begun = 0  # queries that hold a thread

    async def query(self, promql: str) -> list[Sample]:
        """The value of an expression now. Raises `RetryLater`, `GiveUp`."""
        return await self._ask(lambda: _now(self._connect.custom_query(promql, WHOLE_ONLY)))

    async def query_range(
        self, promql: str, *, from_s: float, to_s: float, step_s: float
    ) -> list[Sample]:
        """The values at every step between two Unix times. Raises `RetryLater`, `GiveUp`."""
        from_at, to_at = (datetime.fromtimestamp(at_s, UTC) for at_s in (from_s, to_s))
        return await self._ask(
            lambda: _then(
                self._connect.custom_query_range(promql, from_at, to_at, f"{step_s:g}", WHOLE_ONLY)
            )
        )

    def close(self) -> None:
        """Ask no more; what is being asked ends by its own time limit."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._connect.close()

    async def _ask(self, ask: Callable[[], list[Sample]]) -> list[Sample]:
        if self._begun >= AT_ONCE:
            raise RetryLater("earlier queries have not ended yet", after_s=1.0)
        self._begun += 1
        asked = asyncio.get_running_loop().run_in_executor(self._threads, _in_words, ask)
        asked.add_done_callback(self._ended)
        # The session has a limit on each read and on all of them; this one is for a server that
        # sends its headers byte by byte.
        patience_s = 2 * self._settings.timeout_s + 1.0
        done, _ = await asyncio.wait((asked,), timeout=patience_s)
        if not done:
            raise RetryLater(f"no whole answer within {patience_s:g} s", after_s=1.0)
        return asked.result()

    def _ended(self, asked: "asyncio.Future[list[Sample]]") -> None:
        self._begun -= 1
        if not asked.cancelled():
            asked.exception()  # seen: who asked may have left


class _Session(requests.Session):
    """What `PrometheusConnect` sends its requests by: everything about them is bounded here."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False  # no proxy, no .netrc: where secrets go is the settings' to say

    def request(  # type: ignore[override]  # called by `PrometheusConnect` alone
        self, method: str, url: str, params: Mapping[str, Any], **how: Any
    ) -> "_Answer":
        """One request, its parameters as a form; returns what `PrometheusConnect` reads."""
        how["allow_redirects"] = False  # a login page is no answer
        ends_s = time.monotonic() + how["timeout"]
        with super().request(method, url, data=params, stream=True, **how) as response:
            return _Answer(_document(response.status_code, _body(response, ends_s=ends_s)))


class _Answer(NamedTuple):
    """A good answer, as `PrometheusConnect` looks at it."""

    document: Any
    status_code: int = 200

    def json(self) -> Any:
        return self.document


def _body(response: requests.Response, *, ends_s: float) -> bytes:
    body = bytearray()
    for chunk in response.iter_content(READ_BYTES):
        body += chunk
        if len(body) > ANSWER_MAX_BYTES:
            raise RetryLater(f"its answer is longer than {ANSWER_MAX_BYTES} bytes", after_s=1.0)
        if time.monotonic() > ends_s:
            raise RetryLater("its answer came too slowly", after_s=1.0)
    return bytes(body)


def _document(status: int, body: bytes) -> Mapping[str, Any]:
    """What was answered, if it is whole. Raises `RetryLater`, `GiveUp`."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    said = document if isinstance(document, dict) else {}
    words = shortened(str(said["error"])) if "error" in said else ""
    if status in REFUSED and words:
        raise GiveUp(f"Prometheus refuses the query: {words}")
    if status in NO_LOGIN:
        raise RetryLater(
            f"answered {status}{words and ': ' + words}; check the login in [prometheus]",
            after_s=1.0,
        )
    if status != HTTPStatus.OK:
        raise RetryLater(f"answered {status}{words and ': ' + words}", after_s=1.0)
    data = said.get("data")
    whole = isinstance(data, dict) and isinstance(data.get("result"), list)
    if said.get("status") != "success" or not whole:
        raise RetryLater("answered what is not Prometheus' JSON; check the url", after_s=1.0)
    if warnings := said.get("warnings"):
        first = warnings[0] if isinstance(warnings, list) else warnings
        raise RetryLater(f"answered in part: {shortened(str(first))}", after_s=1.0)
    if said.get("isPartial"):
        raise RetryLater("answered in part: a store is out of reach", after_s=1.0)
    return said


def _now(result: Any) -> list[Sample]:
    """A scalar or a vector as samples. Raises `GiveUp` for what is neither."""
    try:
        if result and not isinstance(result[0], dict):  # a scalar: its time and value
            return [Sample({}, float(result[1]), float(result[0]))]
        return [
            Sample(_labels(row), float(row["value"][1]), float(row["value"][0])) for row in result
        ]
    except (KeyError, IndexError, TypeError, ValueError):
        raise GiveUp(
            "the query gives neither a number nor a vector of numbers: a text, a range such as "
            "x[1m], or native histograms"
        ) from None


def _then(result: Any) -> list[Sample]:
    """A matrix as samples. Raises `GiveUp`."""
    try:
        return [
            Sample(_labels(row), float(value), float(at_s))
            for row in result
            for at_s, value in row["values"]
        ]
    except (KeyError, TypeError, ValueError):
        raise GiveUp("the query gives no numbers over time") from None


def _labels(row: Mapping[str, Any]) -> Mapping[str, str]:
    """Raises `TypeError`, as whatever else is wrong with a row."""
    labels = row["metric"]
    if not isinstance(labels, dict):
        raise TypeError
    return labels


def _in_words(ask: Callable[[], list[Sample]]) -> list[Sample]:
    """Run in a thread; what the libraries raise becomes one plain line."""
    try:
        return ask()
    except requests.exceptions.SSLError as error:
        raise RetryLater(f"TLS: {_root(error)}; check the *-file keys", after_s=1.0) from None
    except requests.exceptions.Timeout:
        raise RetryLater("no answer in time", after_s=1.0) from None
    except requests.exceptions.RequestException as error:
        late = "timed out" in str(error)
        raise RetryLater("no answer in time" if late else _root(error), after_s=1.0) from None
    except OSError as error:  # a file with a secret, or a certificate
        raise RetryLater(
            f"{error.filename or ''}: {error.strerror or error}", after_s=1.0
        ) from None


def _root(error: BaseException) -> str:
    """The words of the innermost error; the libraries wrap each other's."""
    while True:
        inner = getattr(error, "reason", None) or error.__cause__ or error.__context__
        inner = inner or next((a for a in error.args if isinstance(a, BaseException)), None)
        if not isinstance(inner, BaseException):
            return shortened(getattr(error, "strerror", None) or str(error) or type(error).__name__)
        error = inner


def _login(settings: PrometheusSettings) -> AuthBase | None:
    if settings.bearer_token_file is not None:
        return _Bearer(settings.bearer_token_file)
    if settings.username is not None and settings.password_file is not None:
        return _Basic(settings.username, settings.password_file)
    return None


class _Bearer(AuthBase):
    """A token from a file, read for every request: what mounts it also renews it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        token = _secret(self._file)
        if not re.fullmatch(rb"[!-~]+", token):  # the library's own words would repeat it
            raise RetryLater(f"{self._file} holds no token of one word", after_s=1.0)
        request.headers["Authorization"] = f"Bearer {token.decode('ascii')}"
        return request


class _Basic(AuthBase):
    """A name and a password from a file, read for every request."""

    def __init__(self, username: str, file: Path) -> None:
        self._username = username
        self._file = file

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return HTTPBasicAuth(self._username.encode(), _secret(self._file))(request)


def _secret(file: Path) -> bytes:
    return file.read_bytes().strip()
