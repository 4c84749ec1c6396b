# SPDX-License-Identifier: Apache-2.0
"""The extender in a process of its own, before a cluster that lives in its memory.

All of it is the shipped one, from bytes to Bindings, but for Lease and API server: this process
leads, and a Binding is written and seen by the watch before it is answered.
"""

import asyncio
import signal
import socket
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import uvicorn
import uvloop
from prometheus_client import CollectorRegistry

from scheduler_extender.annotations import demand_of, pod_seen
from scheduler_extender.app import App
from scheduler_extender.binding import Binds
from scheduler_extender.errors import Refused
from scheduler_extender.node_report import node_seen
from scheduler_extender.ports import Binding, PodRead
from scheduler_extender.state import ClusterState
from scheduler_extender.verbs import Verbs
from simulations.packing.objects import Raw


def serve(nodes: Sequence[Raw], pods: Sequence[Raw], teller: Connection) -> None:
    """Tell the port, then each pod's annotations as it is bound; ends when `teller` is closed."""
    # Ctrl-C comes to all processes of a terminal; who started this one closes `teller` then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(nodes, pods, teller))


async def _serve(nodes: Sequence[Raw], pods: Sequence[Raw], teller: Connection) -> None:
    state = ClusterState()
    for node in map(node_seen, nodes):
        state.node_seen(node)
    state.nodes_listed({node["metadata"]["name"] for node in nodes})
    state.pods_listed(set(), began_s=time.monotonic())
    cluster = PodsInMemory(pods, state=state, teller=teller)
    binds = Binds(state, binder=cluster, lease=AlwaysLeading(), now_s=time.monotonic)
    app = App(Verbs(state, binds), registry=CollectorRegistry())
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none")
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        teller.send(listening.getsockname()[1])
        # Nothing is ever sent to us: that it can be read means that the other end is closed.
        loop = asyncio.get_running_loop()
        loop.add_reader(teller.fileno(), setattr, server, "should_exit", True)
        await server.serve([listening])
        loop.remove_reader(teller.fileno())


class AlwaysLeading:
    leading = True


class PodsInMemory:
    """The API server's part: pods by name, each bound at most once."""

    def __init__(self, pods: Sequence[Raw], *, state: ClusterState, teller: Connection) -> None:
        self._pods = {(p["metadata"]["namespace"], p["metadata"]["name"]): p for p in pods}
        self._state = state
        self._teller = teller

    async def bind(self, binding: Binding) -> None:
        pod = self._pods.get((binding.namespace, binding.pod))
        if pod is None or pod["metadata"]["uid"] != binding.uid or "nodeName" in pod["spec"]:
            raise Refused(f"pod {binding.namespace}/{binding.pod} is gone, another one, or bound")
        pod["metadata"]["annotations"].update(binding.annotations)
        pod["spec"]["nodeName"] = binding.node
        self._state.pod_seen(pod_seen(pod))
        self._teller.send(pod["metadata"]["annotations"])

    async def read(self, namespace: str, name: str) -> PodRead | None:
        pod = self._pods.get((namespace, name))
        return None if pod is None else PodRead(pod_seen(pod), demand_of(pod))
