# SPDX-License-Identifier: Apache-2.0
"""Whether an activator that connects is one of ours: its token is shown to the API server."""

from typing import Final

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.resources import TOKEN_REVIEWS
from autoscaler.channel import Hello
from autoscaler.errors import TidegateError

AUDIENCE: Final = "tidegate"
ACCOUNT: Final = "tidegate-activator"  # the one that the chart gives to activators
POD: Final = "authentication.kubernetes.io/pod-name"


class Vouching:
    """Asks the API server whose a token is."""

    def __init__(self, api: KubeApi, namespace: str) -> None:
        self._api = api
        self._user = f"system:serviceaccount:{namespace}:{ACCOUNT}"

    async def why_not(self, hello: Hello) -> str | None:
        """None: the token is an activator's, of the pod it names; else why it is refused."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": hello.bearer, "audiences": [AUDIENCE]},
        }
        try:
            review = await self._api.create(TOKEN_REVIEWS.path(), body)
        except TidegateError as trouble:
            return f"its token could not be checked: {trouble}"
        status = review.get("status", {})
        if not status.get("authenticated") or AUDIENCE not in status.get("audiences", ()):
            return f"its token is not valid: {status.get('error', 'not for us')}"
        user = status.get("user", {})
        if user.get("username") != self._user:
            return f"its token is that of {user.get('username')}, not of {self._user}"
        pods = (user.get("extra") or {}).get(POD, [])
        if pods and hello.pod not in pods:
            return f"its token is that of pod {pods[0]}, not of {hello.pod}"
        return None
