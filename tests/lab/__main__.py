# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.lab`: build the lab's programs, or work in a lab by hand."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable

from tests.lab import build, network, played
from tests.lab.lab import Lab, LabError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build", help="find or build the control plane, Helm and kwok")
    verbs.add_parser("shell", help="a shell inside a fresh lab; it ends with the shell")
    verbs.add_parser(
        "bench",
        help="`tidegate bench platform` in a fresh lab where kwok plays the nodes; its options",
        add_help=False,
    )
    asked, options = parser.parse_known_args()
    if asked.verb != "bench" and options:
        parser.error(f"unknown: {' '.join(options)}")
    if asked.verb == "build":
        return _build()
    return _in_lab(_shell if asked.verb == "shell" else lambda lab: played.bench(lab, options))


def _build() -> int:
    """Where it cannot be built the tests skip; only who asks for the lab by name sees a failure."""
    why = network.why_impossible()
    try:
        if why is not None:
            raise build.CannotBuild(why)
        sys.stderr.write(f"lab: programs in {build.build().folder}\n")
    except build.CannotBuild as trouble:
        sys.stderr.write(f"lab: its tests will be skipped: {trouble}\n")
        return 1 if os.environ.get("TIDEGATE_LAB_REQUIRED") else 0
    return 0


def _in_lab(work: Callable[[Lab], int]) -> int:
    """Do `work` in a fresh lab that ends with it."""
    why = network.why_impossible()
    if why is not None:
        sys.stderr.write(f"lab: {why}\n")
        return 1
    try:
        lab = Lab(build.build())
    except build.CannotBuild as trouble:
        sys.stderr.write(f"lab: {trouble}\n")
        return 1
    try:
        lab.start()
        return work(lab)
    except LabError as trouble:
        sys.stderr.write(f"lab: {trouble}\n")
        return 1
    finally:
        lab.close()


def _shell(lab: Lab) -> int:
    sys.stderr.write(
        f"lab: up in {lab.start_s:.1f} s. kubectl, helm and kwok talk to it; ClusterIPs and "
        f"pod addresses can be reached from here;\n     logs are in {lab.folder}. "
        f"Leave the shell to end it all.\n"
    )
    shell = os.environ.get("SHELL", "/bin/sh")
    return subprocess.call([shell], env={**lab.env, "PS1": "(lab) \\w $ "})  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
