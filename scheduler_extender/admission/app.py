# SPDX-License-Identifier: Apache-2.0
"""The webhook over HTTP: plain ASGI on raw bytes. Only here an error becomes a status.

A pod that is refused is a 200 that says so. Any other status lets the API server go by the
webhook's failurePolicy.
"""

from collections.abc import Callable
from datetime import datetime
from math import nan
from typing import Final

import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    generate_latest,
)

from scheduler_extender.admission.pods import Wiring
from scheduler_extender.admission.review import Judge, Verdict, mutate, review, validate
from scheduler_extender.errors import Malformed
from scheduler_extender.listening import TEXT, Receive, Scope, Send, reply, whole_body

log = structlog.get_logger(__name__)

# The API server takes no object over 3 MiB, and an update carries two; etcd's limit is 1.5 MiB.
MOST_BODY_BYTES: Final = 3 * 2**20
JUDGES: Final[dict[str, Judge]] = {"/mutate": mutate, "/validate": validate}
ABOUT: Final = (
    b"POST /mutate, /validate: admission webhooks for pods; GET /healthz, /readyz, /metrics\n"
)

Page = tuple[int, bytes, bytes]  # status, content type, body


class App:
    """`why_unready` says why the API server cannot ask this process now; None: it can.

    `ends_at`: when the certificate that it serves is good no more; None: it serves none.
    """

    def __init__(
        self,
        wiring: Wiring,
        *,
        registry: CollectorRegistry,
        why_unready: Callable[[], str | None] = lambda: None,
        ends_at: Callable[[], datetime | None] = lambda: None,
    ) -> None:
        self._wiring = wiring
        self._registry = registry
        self._why_unready = why_unready
        self._reviews = Counter(
            "tidegate_admission_reviews",
            "Reviews of pods by webhook and what came of it: untouched, changed, refused, "
            "malformed, failed.",
            ["webhook", "outcome"],
            registry=registry,
        )
        Gauge(
            "tidegate_admission_certificate_expiry_timestamp_seconds",
            "When the certificate that is served is good no more, in seconds since 1970; NaN where "
            "there is none yet.",
            registry=registry,
        ).set_function(lambda: nan if (ends := ends_at()) is None else ends.timestamp())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        if scope["method"] == "POST" and path in JUDGES:
            body = await whole_body(receive, most_bytes=MOST_BODY_BYTES)
            status, kind, answer = self._judged(path, body)
        else:
            status, kind, answer = self._page(path)
        await reply(send, status=status, kind=kind, body=answer)

    async def pages(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """The same application without the webhooks."""
        if scope["type"] == "http":
            status, kind, answer = self._page(scope["path"])
            await reply(send, status=status, kind=kind, body=answer)

    def _judged(self, path: str, body: bytes | None) -> Page:
        outcome = "failed"
        page: Page = 500, TEXT, b"the webhook failed on this review; its log has more\n"
        try:
            if body is None:
                raise Malformed(f"a review is at most {MOST_BODY_BYTES} bytes")
            answer, verdict = review(body, JUDGES[path], wiring=self._wiring)
            page, outcome = (200, b"application/json", answer), _outcome(verdict)
        except Malformed as wrong:
            page, outcome = (413 if body is None else 400, TEXT, f"{wrong}\n".encode()), "malformed"
            log.warning("a review was not understood", why=str(wrong))
        except Exception:  # the edge of the process: the next pod needs an answer
            log.exception("the webhook failed on a review", path=path)
        self._reviews.labels(path.removeprefix("/"), outcome).inc()
        return page

    def _page(self, path: str) -> Page:
        match path:
            case "/healthz":
                return 200, TEXT, b"ok\n"
            case "/readyz":
                why = self._why_unready()
                return (200, TEXT, b"ok\n") if why is None else (503, TEXT, f"{why}\n".encode())
            case "/metrics":
                return 200, CONTENT_TYPE_LATEST.encode(), generate_latest(self._registry)
        return 404, TEXT, ABOUT


def _outcome(verdict: Verdict) -> str:
    if verdict.problems:
        return "refused"
    return "changed" if verdict.patch else "untouched"
