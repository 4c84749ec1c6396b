# SPDX-License-Identifier: Apache-2.0
"""A controller of its own process, to be killed by a test: one service of toy workers, for ever.

Usage: python controller.py STATE_DIR REPLICAS COMMAND...; writes pids to STATE_DIR/pids once ready.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

from autoscaler.core.replicas import ReplicaState
from tests.adapters.builders import a_local_service
from tests.adapters.machine import Machine


async def main(state_dir: Path, replicas: int, command: list[str]) -> None:
    machine = Machine(state_dir)
    cluster = await machine.up(a_local_service(*command, initial_replicas=replicas))
    kept = cluster.keep("activator", ("sleep", "600"))
    await machine.until(*[ReplicaState.READY] * replicas)
    pids = {**cluster.pids(), "activator": kept.pid, "guard": cluster.guard_pid}
    part = state_dir / "pids.part"
    part.write_text(json.dumps(pids))
    os.rename(part, state_dir / "pids")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
