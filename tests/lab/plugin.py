# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.lab.plugin FOLDER hold|reserve`: a pod's process that has one card of a node.

The kubelet of the lab has no device plugin, so the process takes a card by itself: each is a file
in FOLDER, had by whoever has locked it, until that process ends. `hold` says which it has;
`reserve` is `tidegate node-agent reserve` over a library that shows this card alone.
"""

import fcntl
import os
import random
import signal
import sys
from pathlib import Path

from scheduler_extender.logs import configure
from scheduler_extender.node_agent.reserve import run
from scheduler_extender.node_agent.settings import OwnPod
from tests.scheduler_extender.node_agent.fake_nvml import FakeCard, FakeNvml


def main(folder: Path, how: str) -> None:
    uuid = taken(folder)
    sys.stdout.write(f"has={uuid}.\n")
    sys.stdout.flush()
    if how == "hold":
        signal.pause()
    configure()
    name, namespace, uid = (os.environ[f"POD_{what}"] for what in ("NAME", "NAMESPACE", "UID"))
    own = OwnPod(name, namespace, uid)
    run(own, library=FakeNvml([FakeCard(uuid)]))


def taken(folder: Path) -> str:
    """Any card that nobody has; it is locked from now on."""
    files = sorted(folder.iterdir())
    for file in random.sample(files, len(files)):
        number = os.open(file, os.O_RDWR)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(number)
        else:
            return file.name
    sys.exit("no card is free: more was given out than there is")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
