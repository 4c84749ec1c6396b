# SPDX-License-Identifier: Apache-2.0
"""The extender over HTTP: plain ASGI on raw bytes. Only here an error becomes a status.

kube-scheduler ignores the body of any status but 200, so what does not fit is said in a 200. 503
says: another answers, or not yet; kube-scheduler backs off and tries again.
"""

import time
from collections.abc import Callable
from typing import Final

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from scheduler_extender.errors import Malformed, NotLeading
from scheduler_extender.listening import TEXT, Receive, Scope, Send, reply, whole_body
from scheduler_extender.metrics import VerbMetrics
from scheduler_extender.verbs import Verbs

log = structlog.get_logger(__name__)

MOST_BODY_BYTES: Final = 64 * 2**20  # 5,000 whole Nodes, should somebody send those
JSON: Final = b"application/json"
VERBS: Final = ("filter", "prioritize", "pick", "preempt", "bind")
ABOUT: Final = (
    b"POST /filter, /prioritize, /pick, /preempt, /bind: a kube-scheduler extender; "
    b"GET /healthz, /readyz, /metrics\n"
)


class App:
    """`why_unready` says why this process cannot answer verbs now; None: it can.

    What comes in on `pages_port` gets pages and no verb.
    """

    def __init__(
        self,
        verbs: Verbs,
        *,
        registry: CollectorRegistry,
        why_unready: Callable[[], str | None] = lambda: None,
        pages_port: int | None = None,
    ) -> None:
        self._verbs = verbs
        self._registry = registry
        self._metrics = VerbMetrics(registry)
        self._why_unready = why_unready
        self._pages_port = pages_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        verb = scope["path"].rpartition("/")[2]
        if scope["method"] == "POST" and verb in VERBS and self._takes_verbs(scope):
            body = await whole_body(receive, most_bytes=MOST_BODY_BYTES)
            status, kind, answer = await self._verb(verb, body)
        else:
            status, kind, answer = self._page(scope["path"])
        await reply(send, status=status, kind=kind, body=answer)

    def _takes_verbs(self, scope: Scope) -> bool:
        return self._pages_port is None or scope["server"][1] != self._pages_port

    async def _verb(self, verb: str, body: bytes | None) -> tuple[int, bytes, bytes]:
        began_s, status = time.perf_counter(), 500
        try:
            status, answer = 200, await self._answer(verb, body)
        except Malformed as wrong:
            status, answer = 400, str(wrong).encode()
        except NotLeading as later:
            status, answer = 503, str(later).encode()
        except Exception:  # the one edge of the process: a defect must not stop the next pod
            log.exception("the extender failed on a call", verb=verb)
            answer = b"the extender failed on this call; its log has more"
        self._metrics.told(verb, status, time.perf_counter() - began_s)
        return status, JSON if status == 200 else TEXT, answer

    async def _answer(self, verb: str, body: bytes | None) -> bytes:
        if body is None:
            raise Malformed(f"the body of /{verb} is over {MOST_BODY_BYTES} bytes")
        match verb:
            case "filter":
                return self._verbs.filter(body)
            case "prioritize":
                return self._verbs.prioritise(body)
            case "pick":
                return self._verbs.pick(body)
            case "preempt":
                return self._verbs.preempt(body)
            case _:
                return await self._verbs.bind(body)

    def _page(self, path: str) -> tuple[int, bytes, bytes]:
        match path:
            case "/healthz":
                return 200, TEXT, b"ok\n"
            case "/readyz":
                why = self._why_unready()
                return (200, TEXT, b"ok\n") if why is None else (503, TEXT, why.encode() + b"\n")
            case "/metrics":
                return 200, CONTENT_TYPE_LATEST.encode(), generate_latest(self._registry)
        return 404, TEXT, ABOUT
