# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.lab.kubelet`: a node whose pods are local processes.

It has to be root (mount namespaces, cgroups), and its pods' processes are root too, whatever their
securityContext says. All nodes of a lab share one network; see launch.py and cgroups.py.
"""

import argparse
import sys
from pathlib import Path
from urllib.parse import urlsplit

from autoscaler.adapters.local.guard import Guard
from autoscaler.logs import configure
from tests.lab.kubelet.addresses import Addresses
from tests.lab.kubelet.agent import Kubelet
from tests.lab.kubelet.cgroups import PodCgroups
from tests.lab.kubelet.node import NodeFacts
from tests.lab.kubelet.sandbox import Node
from tests.lab.rest import connect
from tests.lab.running import run_until_signalled

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.kubelet", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--node", required=True, help="the Node's name")
    parser.add_argument("--node-ip", required=True)
    parser.add_argument("--pod-cidr", required=True, help="its pods' addresses, bindable here")
    parser.add_argument("--run-dir", type=Path, required=True, help="volumes and logs")
    parser.add_argument("--cluster-dns", help="the pods' name server; unset: the node")
    parser.add_argument("--capacity", action="append", default=[], metavar="RESOURCE=AMOUNT")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--backoff-s", type=float, default=10.0, help="first back-off of a restart")
    parser.add_argument("--refresh-s", type=float, default=10.0, help="of ConfigMaps in volumes")
    return parser.parse_args()


def pairs(texts: list[str]) -> dict[str, str]:
    return {key: value for key, _, value in (text.partition("=") for text in texts)}


async def run(args: argparse.Namespace) -> None:
    folder = args.run_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    guard = Guard()
    async with connect(args.kubeconfig) as rest:
        server = urlsplit(rest.host)
        port = server.port or 443
        cgroups = PodCgroups(args.node, api_port=port)
        env = {
            "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
            "HOME": "/root",
            "KUBERNETES_SERVICE_HOST": server.hostname or "",
            "KUBERNETES_SERVICE_PORT": str(port),
            "KUBERNETES_SERVICE_PORT_HTTPS": str(port),
        }
        node = Node(
            rest=rest,
            name=args.node,
            ip=args.node_ip,
            folder=folder,
            addresses=Addresses(args.pod_cidr, taken=frozenset({args.node_ip})),
            cgroups=cgroups,
            guard=guard,
            env=env,
            dns=args.cluster_dns or args.node_ip,
            backoff_s=args.backoff_s,
            refresh_s=args.refresh_s,
        )
        facts = NodeFacts(
            name=args.node,
            ip=args.node_ip,
            pod_cidr=args.pod_cidr,
            capacity=pairs(args.capacity),
            labels=pairs(args.label),
        )
        try:
            await Kubelet(node, facts).run()
        finally:
            cgroups.close()
            guard.close()


if __name__ == "__main__":
    configure()
    run_until_signalled(run(arguments()))
