# SPDX-License-Identifier: Apache-2.0
"""Who may connect as an activator: whoever has the activators' own token, and nobody else."""

from typing import Any

import orjson
import pytest

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.vouching import Vouching
from autoscaler.channel import Hello
from tests.adapters.kubernetes.fake_api_server import FakeApiServer

OURS = "system:serviceaccount:tidegate-system:tidegate-activator"
POD = "tidegate-activator-1"


def a_review(username: str = OURS, **status: Any) -> dict[str, Any]:
    extra = {"authentication.kubernetes.io/pod-name": [POD]}
    user = {"username": username, "extra": extra}
    return {"status": {"authenticated": True, "audiences": ["tidegate"], "user": user} | status}


@pytest.mark.parametrize(
    ("review", "pod", "why"),
    [
        (a_review(), POD, None),
        (a_review(), "tidegate-activator-2", "that of pod tidegate-activator-1"),
        (a_review("system:serviceaccount:tidegate-system:default"), POD, ":default, not of"),
        (a_review("system:serviceaccount:elsewhere:tidegate-activator"), POD, ":elsewhere:"),
        (a_review(f"{OURS}-2"), POD, "tidegate-activator-2, not of"),
        (a_review(audiences=["api"]), POD, "not valid"),
        (a_review(authenticated=False, error="expired"), POD, "expired"),
    ],
    ids=["ours", "another pod", "another account", "another namespace", "a longer name",
         "another audience", "expired"],
)  # fmt: skip
async def test_a_token_is_believed_if_it_is_an_activators_of_that_pod(
    api: KubeApi,
    server: FakeApiServer,
    review: dict[str, Any],
    pod: str,
    why: str | None,
) -> None:
    server.fail(201, body=orjson.dumps(review), verb="create")
    hello = Hello(process=0, of=1, pid=7, token="1", pod=pod, bearer="2")  # noqa: S106
    said = await Vouching(api, "tidegate-system").why_not(hello)
    assert (said is None) if why is None else (why in str(said))
