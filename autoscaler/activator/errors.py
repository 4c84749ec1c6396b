# SPDX-License-Identifier: Apache-2.0
"""How a refusal reads: every answer that the activator gives in its own name is written here.

Clients parse errors, so each gets the shape of the protocol it asked in: OpenAI's
`{"error": {"message", "type", "code", "param"}}` on OpenAI's paths, `{"error": "..."}` (KServe V1,
Open Inference Protocol V2) on all others. Every one carries `X-Tidegate-Service`, so that nobody
takes it for the replica's.
"""

from http import HTTPStatus
from typing import Final

import orjson

# OpenAI's own SDK gives up when it is told to wait longer than 120 s; a full queue moves much
# sooner.
RETRY_AFTER_S: Final = 5

_OPENAI: Final = (
    "/v1/audio/",
    "/v1/chat/",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/images/",
    "/v1/messages",
    "/v1/realtime",
    "/v1/rerank",
    "/v1/responses",
    "/v1/score",
)
_OPENAI_TYPES: Final = {
    400: "invalid_request_error",
    502: "bad_gateway",
    503: "overloaded",
    504: "timeout",
}


def speaks_openai(path: str) -> bool:
    """Whether errors on this path are read by OpenAI's clients (`/v1/models/M:predict` is not).

    KServe's own server puts OpenAI's paths under `/openai`.
    """
    path = path.removeprefix("/openai")
    if path.startswith("/v1/models"):
        return ":" not in path
    return path.startswith(_OPENAI)


def error_body(path: str, status: int, message: str) -> bytes:
    """The body of an error, as JSON in the shape that belongs to `path`."""
    if speaks_openai(path):
        kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        return orjson.dumps(
            {"error": {"message": message, "type": kind, "code": str(status), "param": None}}
        )
    return orjson.dumps({"error": message})


def error_response(
    path: str, status: int, message: str, *, service: str, close: bool, head_only: bool = False
) -> bytes:
    """A whole error response. 503 tells when to come again (seconds)."""
    body = error_body(path, status, message)
    extra = (
        b"Retry-After: %d\r\n" % RETRY_AFTER_S if status == HTTPStatus.SERVICE_UNAVAILABLE else b""
    )
    return response(
        status, body, service=service, close=close, head_only=head_only, extra_lines=extra
    )


def response(
    status: int,
    body: bytes,
    *,
    service: str,
    close: bool,
    head_only: bool = False,
    extra_lines: bytes = b"",
) -> bytes:
    """A whole response in the activator's own name; `extra_lines` are header lines with CR LF."""
    head = (
        b"HTTP/1.1 %d %b\r\n"
        b"Content-Type: application/json\r\n"
        b"Content-Length: %d\r\n"
        b"X-Tidegate-Service: %b\r\n"
        b"%b%b\r\n"
    ) % (
        status,
        HTTPStatus(status).phrase.encode("ascii"),
        len(body),
        _header_safe(service),
        extra_lines,
        b"Connection: close\r\n" if close else b"",
    )
    return head if head_only else head + body


def state_line(state: str) -> bytes:
    """The header line that tells that the activator answered in a sleeping service's place."""
    return b"X-Tidegate-State: %b\r\n" % _header_safe(state)


def activator_line(name: str) -> bytes:
    """The header line that tells which activator answered the controller's probe."""
    return b"X-Tidegate-Activator: %b\r\n" % _header_safe(name)


def activator_body(name: str) -> bytes:
    """The body of the answer to the controller's probe."""
    return orjson.dumps({"activator": name})


def _header_safe(text: str) -> bytes:
    """Text as a header value: what could end the line, or is not ASCII, becomes a question mark."""
    return bytes(c if 0x20 <= c < 0x7F else 0x3F for c in text.encode("ascii", "replace"))
