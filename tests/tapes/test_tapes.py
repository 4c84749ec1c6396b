# SPDX-License-Identifier: Apache-2.0
"""Golden stories: what is decided, and why, second by second, in a form people can read."""

from pathlib import Path

import pytest

from autoscaler.contract import policy_from
from autoscaler.core.decide import Decision
from tests.story import LEVELS, Story

HERE = Path(__file__).parent
TAPES = sorted(HERE.glob("*.tape"))


def played(text: str) -> str:
    """The tape with every right-hand side as the core decides it now."""
    keys: dict[str, str] = {}
    story: Story | None = None
    lines = []
    for line in text.splitlines():
        if line.startswith("#:"):
            name, _, value = line[2:].partition("=")
            keys[name.strip()] = value.strip()
        if not line.startswith("at="):
            lines.append(line)
            continue
        if story is None:
            slots = keys.pop("slots", None)
            story = Story(policy_from(keys, slots=int(slots) if slots else None))
        seen = line.partition("->")[0].rstrip()
        lines.append(f"{seen:<58} -> {_told(_step(story, seen))}")
    return "\n".join(lines) + "\n"


def _step(story: Story, seen: str) -> Decision:
    words = dict(word.split("=", 1) for word in seen.split())
    levels = {name: None if words[name] == "?" else float(words[name])
              for name in LEVELS if name in words}  # fmt: skip
    if "path" in words:
        story.path_held = words["path"] == "held"
    if "scale" in words:
        story.scale = int(words["scale"])
    ready = int(words["ready"]) if "ready" in words else None
    at_s = float(words["at"])
    while story.now_s + 1.0 < at_s:
        story.play(story.now_s + 1.0, levels, ready=ready)
    return story.play(at_s, levels, ready=ready)


def _told(decision: Decision) -> str:
    return f"{decision.replicas} {decision.state}  {'; '.join(decision.because)}"


@pytest.mark.parametrize("tape", TAPES, ids=lambda tape: tape.stem)
def test_the_core_decides_as_the_tape_tells(tape: Path, request: pytest.FixtureRequest) -> None:
    """Every line of the story ends in the count, the state and the reasons written there."""
    text = tape.read_text()
    if request.config.getoption("--rewrite"):
        tape.write_text(played(text))
    assert played(text) == tape.read_text()
