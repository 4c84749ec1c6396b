# SPDX-License-Identifier: Apache-2.0
"""The table of all paths. `{}` is a name; `/versions/{}` may follow each `/v2/models/{}`."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serving.errors import NotFound, WrongVerb
from serving.protocols import v1, v2
from serving.protocols.http import Answer
from serving.protocols.metrics import metrics

Handler = Callable[..., Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Route:
    """`verb` on `path` is answered by `handler(worker, request, *names)`.

    `infers`: counted, drained.
    """

    verb: str
    path: str
    handler: Handler
    infers: bool = False


ROUTES = (
    Route("GET", "metrics", metrics),
    Route("GET", "v1/models", v1.models),
    Route("GET", "v1/models/{}", v1.model),
    Route("POST", "v1/models/{}/:predict", v1.predict, infers=True),
    Route("GET", "v2", v2.server),
    Route("GET", "v2/health/live", v2.live),
    Route("GET", "v2/health/ready", v2.ready),
    Route("GET", "v2/models", v2.models),
    Route("GET", "v2/models/stats", v2.stats),
    Route("GET", "v2/models/{}", v2.model),
    Route("GET", "v2/models/{}/ready", v2.model_ready),
    Route("GET", "v2/models/{}/stats", v2.stats),
    Route("POST", "v2/models/{}/infer", v2.infer, infers=True),
    Route("POST", "v2/repository/index", v2.index),
)


@dataclass(frozen=True, slots=True)
class Found:
    """A route and the names that its path carried: model, then version."""

    route: Route
    names: tuple[str, ...]


def _patterns(route: Route) -> list[tuple[str, ...]]:
    plain = tuple(route.path.split("/"))
    if plain[:3] != ("v2", "models", "{}"):
        return [plain]
    return [plain, (*plain[:3], "versions", "{}", *plain[3:])]


_BY_LENGTH: dict[int, list[tuple[tuple[str, ...], Route]]] = {}
for _route in ROUTES:
    for _pattern in _patterns(_route):
        _BY_LENGTH.setdefault(len(_pattern), []).append((_pattern, _route))


def find(verb: str, path: str) -> Found:
    """The route of a request. Raises NotFound, WrongVerb."""
    parts = _parts(path)
    allowed: list[str] = []
    for pattern, route in _BY_LENGTH.get(len(parts), ()):
        if all(p in ("{}", part) for p, part in zip(pattern, parts, strict=True)):
            if route.verb == verb:
                names = (part for p, part in zip(pattern, parts, strict=True) if p == "{}")
                return Found(route, tuple(names))
            allowed.append(route.verb)
    if allowed:
        raise WrongVerb(
            f"{path} answers {', '.join(allowed)}, not {verb}",
            allowed=tuple(dict.fromkeys(allowed)),
        )
    raise NotFound(f"there is no path {path}; see /v1/models, /v2 and /metrics")


def _parts(path: str) -> tuple[str, ...]:
    """The segments, V1's `name:predict` as two."""
    parts = path.strip("/").split("/")
    if parts[0] == "v1" and ":" in parts[-1]:
        name, _, action = parts[-1].partition(":")
        parts[-1:] = [name, ":" + action]
    return tuple(parts)
