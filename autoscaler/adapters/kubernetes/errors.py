# SPDX-License-Identifier: Apache-2.0
"""The API server's refusals as the errors of `autoscaler/errors.py`. Only `api.py` raises them.

Each names the verb, the path, what the server said and what to do about it.
"""

from collections.abc import Mapping
from http import HTTPStatus
from math import isfinite
from typing import Any

import orjson

from autoscaler.adapters.kubernetes.resources import Place
from autoscaler.errors import GiveUp, RetryLater, TidegateError

RETRY_S = 0.5  # where the server does not say how long to wait
SAID_CHARS = 500  # of the server's own words; an HTML page of a proxy may be long


class NotFound(GiveUp):
    """There is no such object, or no such resource: a CRD that is not installed."""


class Forbidden(GiveUp):
    """Our role does not allow it; says which rule it lacks."""


class Refused(RetryLater):
    """The API server answered, and will perhaps answer otherwise later."""


class Conflict(Refused):
    """Somebody else wrote the object first, or made one of that name: read it and try anew."""


class Gone(Refused):
    """The resource version or the page asked for is no longer kept: list anew."""


class Unauthorized(Refused):
    """The API server does not take our credentials, not even those just renewed."""


class Unreachable(RetryLater):
    """The API server did not answer, or not to the end."""


def refusal(
    place: Place, *, verb: str, status: int, body: bytes, after_s: float | None
) -> TidegateError:
    """The error for an answer of 400 or above. `after_s`: what its Retry-After said."""
    what = f"cannot {verb} {place.path}: {_said(body)} ({status})"
    wait_s = RETRY_S if after_s is None else after_s
    match status:
        case HTTPStatus.UNAUTHORIZED:
            remedy = "check the token or the kubeconfig; it is read again at each try"
            return Unauthorized(f"{what}; {remedy}", after_s=max(wait_s, 10.0))
        case HTTPStatus.FORBIDDEN:
            return Forbidden(f"{what}; {_rule(place, verb)}")
        case HTTPStatus.NOT_FOUND:
            return NotFound(f"{what}; it was deleted, or its kind is not installed")
        case HTTPStatus.CONFLICT:
            return Conflict(f"{what}; read it again and try anew", after_s=0.0)
        case HTTPStatus.GONE:
            return Gone(f"{what}; list it anew", after_s=0.0)
        case HTTPStatus.REQUEST_TIMEOUT | HTTPStatus.TOO_MANY_REQUESTS:
            return Refused(f"{what}; the API server is busy, ask it less often", after_s=wait_s)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Refused(f"{what}; look at the API server's log", after_s=wait_s)
    return GiveUp(f"{what}; it is not what this API server takes, see its words")


def event_refusal(place: Place, status: Mapping[str, Any]) -> TidegateError:
    """The error that an ERROR event of a watch stands for; its object is a Status."""
    code = status.get("code")
    code = code if isinstance(code, int) and code >= HTTPStatus.BAD_REQUEST else 500
    return refusal(place, verb="watch", status=code, body=orjson.dumps(status), after_s=None)


def retry_after_s(header: str | None) -> float | None:
    """Seconds from a Retry-After header. Kubernetes never sends the other form, a date."""
    try:
        seconds = float(header) if header else -1.0
    except ValueError:
        return None
    return seconds if isfinite(seconds) and seconds >= 0 else None


def _said(body: bytes) -> str:
    """The message of a Status, else the body's own text."""
    try:
        status = orjson.loads(body)
    except orjson.JSONDecodeError:
        status = None
    if isinstance(status, dict) and status.get("message"):
        return str(status["message"])[:SAID_CHARS]
    return body[:SAID_CHARS].decode(errors="replace").strip() or "no words"


def _rule(place: Place, verb: str) -> str:
    """The rule of a Role that would allow it, as one writes it in YAML."""
    named = f", resourceNames [{place.name}]" if place.name else ""
    where = f"a Role in namespace {place.namespace}" if place.namespace else "a ClusterRole"
    rule = f'apiGroups ["{place.group}"], resources [{place.what}], verbs [{verb}]{named}'
    return f"add to {where} that is bound to us: {rule}"
