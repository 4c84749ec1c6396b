# SPDX-License-Identifier: Apache-2.0
"""Which requests never wake a service: the one table of health, metrics and model-list paths.

Probes and scrapers ask all day long; if they counted, nothing would ever sleep. So these requests
are no activity: they are not counted, not held, and take no slot. With an endpoint that can be
used they go to it; without one the activator answers at once, in the service's place, as the
table says:

- LIVE: 200. The service lives; that it has no process at the moment is nobody's failure.
- READY: 200, with `X-Tidegate-State` and a body that name the state. A service that is asleep takes
  requests and answers them, which is all that readiness promises; 503 would make load balancers
  drop it and clients that check first never send the request that wakes it.
- LIST: 503 with `Retry-After`. What only a replica knows is not made up: an empty list would read
  as "this model does not exist", an empty `/metrics` as "all counters are gone".

A model's metadata (`GET /v2/models/NAME`) does wake: clients ask for it just before they infer, to
learn the names of the inputs, and no prober does.
"""

import re
from enum import Enum
from typing import Final

import orjson


class WhenAsleep(Enum):
    """What the activator answers in the place of a service without a usable endpoint."""

    LIVE = "live"
    READY = "ready"
    LIST = "list"


_NAME = r"[^/:]+"
# Only GET and HEAD; anything else on these paths is a request like any other.
QUIET_PATHS: Final[tuple[tuple[str, WhenAsleep], ...]] = (
    (r"/", WhenAsleep.LIVE),  # KServe V1: alive
    (r"/(health|healthz|ping)", WhenAsleep.READY),  # vLLM, SGLang and others: engine can serve
    (r"/(livez|live|v2/health/live)", WhenAsleep.LIVE),
    (r"/(readyz|ready|v2/health/ready)", WhenAsleep.READY),
    (rf"/v2/models/{_NAME}(/versions/{_NAME})?/ready", WhenAsleep.READY),
    (rf"/v1/models/{_NAME}", WhenAsleep.READY),  # KServe V1: the readiness of one model
    (r"/v1/models", WhenAsleep.LIST),
    (r"/(v2|v2/models|v2/models/stats)", WhenAsleep.LIST),
    (rf"/v2/models/{_NAME}(/versions/{_NAME})?/(config|stats)", WhenAsleep.LIST),
    (r"/(metrics|version|load)", WhenAsleep.LIST),
)
_COMPILED: Final = tuple((re.compile(pattern), answer) for pattern, answer in QUIET_PATHS)


def quiet(method: str, path: str) -> WhenAsleep | None:
    """What is answered while asleep to a request that does not wake; None: it does wake."""
    if method not in ("GET", "HEAD"):
        return None
    bare = path.removeprefix("/openai")
    if len(bare) > 1:
        bare = bare.rstrip("/")
    for pattern, answer in _COMPILED:
        if pattern.fullmatch(bare):
            return answer
    return None


def asleep_body(answer: WhenAsleep, path: str, *, state: str) -> bytes:
    """The body of a 200 in a sleeping service's place; `ready` and `live` as KServe has them."""
    model = re.search(rf"/models/({_NAME})", path)
    body: dict[str, object] = {"name": model.group(1)} if model else {}
    if answer is WhenAsleep.LIVE:
        body |= {"status": "alive", "live": True}
    else:
        body |= {"ready": True}
    return orjson.dumps(body | {"state": state})
