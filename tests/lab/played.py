# SPDX-License-Identifier: Apache-2.0
"""Nodes and pods that only exist as objects: kwok plays them, thousands at no cost.

`python -m tests.lab bench` runs `tidegate bench platform` in such a cluster.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from tests.lab.lab import NODES, REPOSITORY, Lab

LABEL: Final = "type=kwok"
PODS_PER_NODE: Final = 1000
# Nothing of them is measured, and each hears of every pod, or of every endpoint.
BESIDE: Final = ("kube-proxy", "kube-scheduler", "dns", *(f"kubelet-{node}" for node in NODES))


@contextmanager
def played_nodes(lab: Lab, count: int) -> Iterator[None]:
    """So many nodes of kwok, tainted: only who asks for them gets there. Gone afterwards."""
    lab.kwok()
    key, value = LABEL.split("=")
    for number in range(count):
        lab.apply(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": f"played-{number}", "labels": {key: value}},
                "spec": {
                    "podCIDR": f"10.{100 + number}.0.0/16",  # nowhere in the lab
                    "taints": [{"key": "played", "value": "yes", "effect": "NoSchedule"}],
                },
            }
        )
    lab.wait_for(lambda: _ready(lab) >= count, what="the nodes that kwok plays")
    try:
        yield
    finally:
        lab.kubectl("delete", "nodes", "-l", LABEL, "--wait=false")
        lab.stop_component("kwok")


def bench(lab: Lab, options: Sequence[str]) -> int:
    """Run `tidegate bench platform` against a started lab; returns its exit status."""
    for name in BESIDE:
        lab.stop_component(name)
    with played_nodes(lab, 20):
        return run(lab, "--keep", *options).returncode  # all of it ends with the lab


def run(lab: Lab, *options: str, capture_output: bool = False) -> subprocess.CompletedProcess[str]:
    """The command as users type it."""
    words = (sys.executable, "-m", "autoscaler.cli", "bench", "platform")
    return subprocess.run(  # noqa: S603  our own command
        [*words, "--kubeconfig", str(lab.kubeconfig), "--nodes", LABEL, *options],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        text=True,
        check=False,
        capture_output=capture_output,
    )


def _ready(lab: Lab) -> int:
    found = json.loads(lab.kubectl("get", "nodes", "-l", LABEL, "-o", "json"))["items"]
    return sum(
        condition["type"] == "Ready" and condition["status"] == "True"
        for node in found
        for condition in node.get("status", {}).get("conditions", ())
    )
