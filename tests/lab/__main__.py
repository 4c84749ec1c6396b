# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.lab`: build the lab's programs, or work in a lab by hand."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial

from tests.lab import build, gpu_bench, network, played, story
from tests.lab.lab import Lab, LabError

_SEARCH = "default.svc.cluster.local svc.cluster.local cluster.local"
_WELCOME = """\
lab: kubectl and helm are set up for it. Pods are local processes: their addresses, ClusterIPs
     and names such as web.default.svc can be reached from this shell, and from no other.
     An image stands for a local program, see tests/lab/images.py; try
       kubectl run web --image=lab/echo --port=8080 --expose && kubectl get pods
       curl http://web:8080
     It all ends with this shell.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build", help="find or build the control plane, Helm and kwok")
    verbs.add_parser("shell", help="a shell inside a fresh lab; it ends with the shell")
    verbs.add_parser("demo", help="sklearn-iris to zero and back in a fresh lab, as it happens")
    verbs.add_parser(
        "bench",
        help="`tidegate bench platform` in a fresh lab where kwok plays the nodes; its options",
        add_help=False,
    )
    verbs.add_parser(
        "bench-extender",
        help="GPU pods per second through kube-scheduler and our extender, beside its own best-fit",
        add_help=False,
    )
    asked, options = parser.parse_known_args()
    if not asked.verb.startswith("bench") and options:
        parser.error(f"unknown: {' '.join(options)}")
    if asked.verb == "build":
        return _build()
    work: dict[str, Callable[[Lab], int]] = {
        "shell": _shell,
        "demo": _demo,
        "bench": partial(played.bench, options=options),
        "bench-extender": partial(gpu_bench.bench, options=options),
    }
    return _in_a_lab(work[asked.verb])


def _build() -> int:
    """Where it cannot be the tests skip, so that is a failure only where a lab is required."""
    why = network.why_impossible()
    try:
        if why is not None:
            raise build.CannotBuild(why)
        sys.stderr.write(f"lab: programs in {build.build().folder}\n")
    except build.CannotBuild as trouble:
        sys.stderr.write(f"lab: its tests will be skipped: {trouble}\n")
        return 1 if os.environ.get("TIDEGATE_LAB_REQUIRED") == "1" else 0
    return 0


def _in_a_lab(do: Callable[[Lab], int]) -> int:
    """Bring a lab up, do something in it, and end it all."""
    try:
        if (why := network.why_impossible()) is not None:
            raise build.CannotBuild(why)
        lab = Lab(build.build())
    except build.CannotBuild as trouble:
        sys.stderr.write(f"lab: {trouble}\n")
        return 1
    failed = True
    try:
        sys.stderr.write("lab: starting Kubernetes\n")
        lab.start()
        sys.stderr.write(
            f"lab: {build.KUBERNETES} is up after {lab.start_s:.1f} s, logs in {lab.folder}\n"
        )
        status = do(lab)
        failed = False
    except (LabError, OSError) as trouble:
        sys.stderr.write(f"lab: {trouble}\nlab: the logs are kept in {lab.folder}\n")
        return 1
    finally:
        lab.close(keep=failed)
    return status


def _shell(lab: Lab) -> int:
    """Run the user's shell where Service names have addresses."""
    sys.stderr.write(_WELCOME)
    names = lab.folder / "resolv.conf"
    names.write_text(f"nameserver {network.DNS_IP}\nsearch {_SEARCH}\noptions ndots:5\n")
    enter = 'mount --bind "$0" /etc/resolv.conf && exec "$1"'
    shell = os.environ.get("SHELL", "/bin/sh")
    return subprocess.call(  # noqa: S603  the user's own shell
        ["unshare", "--mount", "sh", "-c", enter, str(names), shell],  # noqa: S607  of util-linux
        env={**lab.env, "PS1": "(lab) \\w $ "},
    )


def _demo(lab: Lab) -> int:
    return 0 if story.tell(lab) else 1


if __name__ == "__main__":
    sys.exit(main())
