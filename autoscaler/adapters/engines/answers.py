# SPDX-License-Identifier: Apache-2.0
"""Why an answer over HTTP is no page of metrics, in words that name the remedy. Pure."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from autoscaler.adapters.plain_http import Answer

_SHOWN: Final = 80  # letters of what a server says itself
_PLACE: Final = "prometheus.io/port and prometheus.io/path on the pod tell where its metrics are"

_REMEDIES: Final[Mapping[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "it wants credentials, and pods are asked without; "
    "serve the metrics without on a port of their own",
    HTTPStatus.FORBIDDEN: "it lets nobody in, or not us; "
    "allow the controller there, in a mesh or a proxy before it too",
    HTTPStatus.NOT_FOUND: "no metrics there, or the engine's are off (SGLang: --enable-metrics); "
    + _PLACE,
    HTTPStatus.METHOD_NOT_ALLOWED: f"no metrics there; {_PLACE}",
    HTTPStatus.TOO_MANY_REQUESTS: "it is asked too often; does something else scrape it as well?",
    HTTPStatus.BAD_GATEWAY: "a proxy before the engine does not reach it",
    HTTPStatus.SERVICE_UNAVAILABLE: "it is not ready, or has too much to do; it is asked again",
    HTTPStatus.GATEWAY_TIMEOUT: "a proxy before the engine waits for it in vain",
}


def why_no_page(answer: Answer) -> str | None:
    """What is wrong, to follow the address that was asked; None: it may be a page."""
    if answer.status != HTTPStatus.OK:
        return f"answered {answer.status}{_explained(answer)}"
    if not answer.whole:
        return f"broke off: {answer.cut}"
    if _is_html(answer):
        return f"answered with a web page, not with metrics; {_PLACE}"
    return None


def _explained(answer: Answer) -> str:
    if 300 <= answer.status < 400:
        to = f" to {_shown(answer.location)}" if answer.location else ""
        return f": redirections are not followed{to}; {_PLACE}"
    if "HTTPS" in _first_line(answer.body):
        return ": it speaks TLS there, and metrics are read over plain HTTP only; " + _PLACE
    remedy = _REMEDIES.get(answer.status)
    if remedy is not None:
        return f": {remedy}"
    said = "" if _is_html(answer) else _first_line(answer.body)
    return f": {said}" if said else ""


def _is_html(answer: Answer) -> bool:
    return "text/html" in answer.kind.lower() or answer.body.lstrip()[:1] == b"<"


def _first_line(body: bytes) -> str:
    lines = body[:1000].decode(errors="replace").strip().splitlines()
    return _shown(lines[0]) if lines else ""


def _shown(text: str) -> str:
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
