# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.lab.kserve`: stands in for KServe's controller, in Standard mode.

KServe's own CRDs have to be there (it waits for them); its one runtime it brings along.
"""

import argparse
import asyncio
from pathlib import Path

import yaml

from autoscaler.errors import RetryLater
from autoscaler.logs import configure
from tests.lab.kserve.controller import Controller
from tests.lab.rest import NotFound, Object, Rest, connect
from tests.lab.running import run_until_signalled

RUNTIMES = Path(__file__).parent / "runtimes.yaml"
CRDS_LOOKED_FOR_EVERY_S = 0.5


async def bring_runtimes(rest: Rest, manifests: list[Object]) -> None:
    """Apply them, once their CRD is served."""
    for item in manifests:
        path = "/apis/serving.kserve.io/v1alpha1/clusterservingruntimes"
        while True:
            try:
                await rest.apply(f"{path}/{item['metadata']['name']}", item)
                break
            except (NotFound, RetryLater):
                await asyncio.sleep(CRDS_LOOKED_FOR_EVERY_S)


async def run(args: argparse.Namespace, manifests: list[Object]) -> None:
    async with connect(args.kubeconfig) as rest:
        await bring_runtimes(rest, manifests)
        names = frozenset(name for name in args.namespaces.split(",") if name)
        await Controller(rest, namespaces=names).run()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.kserve", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--namespaces", default="", help="comma-separated; all of them if unset")
    configure()
    manifests = list(yaml.safe_load_all(RUNTIMES.read_text()))
    run_until_signalled(run(parser.parse_args(), manifests))


if __name__ == "__main__":
    main()
