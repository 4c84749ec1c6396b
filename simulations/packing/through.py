# SPDX-License-Identifier: Apache-2.0
"""A run in which every pod goes through the extender's verbs over HTTP, as kube-scheduler sends it.

What a pod got is read from the annotations of its Binding, and taken from a fleet of our own: a
card given out twice ends the run.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from http.client import HTTPConnection, HTTPException
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final

import orjson

from autoscaler.errors import GiveUp
from scheduler_extender.annotations import granted_to
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.gpus import Fleet, Grant, NodeGpus
from simulations.packing import objects
from simulations.packing.protocol import Packing, Run, play

POLICY: Final = "tidegate"  # the one ranking that is both the extender's and compared here
ANSWER_S: Final = 60.0  # a verb takes milliseconds: by then the other process is stuck
START_S: Final = 120.0


def run_through_http(nodes: Sequence[NodeGpus], pods: Sequence[Demand], *, seed: int) -> Run:
    """Run one seed to the end of its list. Raises `GiveUp` where the extender fails."""
    packing = Packing(nodes, pods, policy=POLICY, seed=seed)
    with extender_for(packing) as asking:
        return replace(play(packing, asking), calls=asking.calls)


@contextmanager
def extender_for(packing: Packing) -> Iterator["Asking"]:
    """An extender that knows the run's nodes, until the end of the block."""
    # Only here: it brings a web server, which would slow every start of the simulator down.
    from simulations.packing.cluster import serve

    names = objects.node_names(packing.fleet)
    described = map(packing.fleet.nodes.__getitem__, packing.fleet.names)
    nodes = [objects.a_node(node, name=name) for node, name in zip(described, names, strict=True)]
    pods = [objects.a_pod(pod, number=number) for number, pod in enumerate(packing.arrivals)]
    ours, theirs = multiprocessing.Pipe()
    # Spawned: a fork of a process with threads, as the progress bar's, may deadlock.
    child = multiprocessing.get_context("spawn").Process(
        target=serve, args=(nodes, pods, theirs), daemon=True
    )
    child.start()
    theirs.close()
    try:
        with ours:
            port = int(_told(ours, child))
            with closing(HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)) as http:
                yield Asking(packing.fleet, names=names, pods=pods, http=http, bound=(ours, child))
    finally:
        child.join(ANSWER_S)
        child.kill()


class Asking:
    """kube-scheduler's part: filter, prioritise unless one node is left, bind to the winner."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        names: Sequence[str],
        pods: Sequence[objects.Raw],
        http: HTTPConnection,
        bound: tuple[Connection, BaseProcess],
    ) -> None:
        self.calls = 0
        self._fleet = fleet
        self._names = orjson.dumps(names)
        self._row = {name: row for row, name in enumerate(names)}
        self._pods = iter(pods)
        self._bound = bound
        self._http = http

    def __call__(self, demand: Demand) -> Grant | None:
        """What the run's next pod gets, which wants `demand`; None where it fits nowhere."""
        pod = next(self._pods)
        node = self._best(orjson.dumps(pod))
        if node is None:
            return None
        self._bind(pod["metadata"], node)
        granted = granted_to(_told(*self._bound))
        row = self._row[node]
        uuids = [card.uuid for card in self._fleet.nodes[self._fleet.names[row]].cards]
        cards = [uuids.index(uuid) for uuid in granted.uuids] if granted else []
        if len(cards) != demand.cards:
            raise GiveUp(f"{pod['metadata']['name']}: {len(cards)} GPUs for {demand.cards} asked")
        return self._fleet.grant(row, cards=cards, demand=demand)

    def _best(self, pod: bytes) -> str | None:
        found = self._post("filter", _candidates(pod, self._names))
        if found["Error"]:
            raise GiveUp(f"filter: {found['Error']}")
        fitting: list[str] = found["NodeNames"]
        if len(fitting) < 2:  # kube-scheduler asks for no scores then
            return fitting[0] if fitting else None
        scores = self._post("prioritize", _candidates(pod, orjson.dumps(fitting)))
        most = max(entry["Score"] for entry in scores)
        best = [entry["Host"] for entry in scores if entry["Score"] == most]
        if len(best) > 1:
            raise GiveUp(f"prioritise: {len(best)} nodes share the best score: chance would decide")
        return str(best[0])

    def _bind(self, meta: objects.Raw, node: str) -> None:
        asked = {
            "PodName": meta["name"],
            "PodNamespace": meta["namespace"],
            "PodUID": meta["uid"],
            "Node": node,
        }
        error = self._post("bind", orjson.dumps(asked))["Error"]
        if error:
            raise GiveUp(f"bind of {meta['name']} to {node}, which filter said fits: {error}")

    def _post(self, verb: str, body: bytes) -> Any:
        self.calls += 1
        headers = {"Content-Type": "application/json"}
        try:
            self._http.request("POST", f"/{verb}", body, headers)
            answer = self._http.getresponse()
            status, text = answer.status, answer.read()
        except (OSError, HTTPException) as error:
            raise GiveUp(f"{verb}: the extender's process did not answer: {error!r}") from error
        if status != 200:
            raise GiveUp(f"{verb}: {status} {text.decode()}")
        return orjson.loads(text)


def _candidates(pod: bytes, names: bytes) -> bytes:
    return b'{"Pod":' + pod + b',"Nodes":null,"NodeNames":' + names + b"}"


def _told(ours: Connection, child: BaseProcess) -> Any:
    """What the process tells next."""
    try:
        if ours.poll(START_S):
            return ours.recv()
    except EOFError:
        child.join(1)
    raise GiveUp(
        f"the extender's process told nothing (exit code {child.exitcode}); is there enough memory?"
    )
