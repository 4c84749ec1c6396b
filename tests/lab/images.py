# SPDX-License-Identifier: Apache-2.0
"""Which local program stands for which image: data only, and the rule that finds an entry.

An image is looked up by its name without registry, tag and digest: `ghcr.io/x/tidegate:1@sha256:…`
is `tidegate`. As in a container runtime the pod's `command` replaces the image's own and `args` are
appended. An image that is not listed runs its pod's `command` as written, and without one it cannot
be pulled.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab import build

REPOSITORY = Path(__file__).parents[2]
LAB = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Image:
    """What an image brings. `{ip}` in it is the pod's address, `{cache}` a folder that stays.

    `programs`: what a command's first word stands for, where that lies in the image alone.
    """

    entrypoint: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


BUILT = build.find()
SCHEDULER = (BUILT["kube"] if BUILT else "kube", "kube-scheduler")

OURS = {"PYTHONPATH": str(REPOSITORY)}

IMAGES: dict[str, Image] = {
    # This repository, as it stands.
    "tidegate": Image((sys.executable, "-m", "autoscaler.cli"), OURS),
    # KServe's server of scikit-learn models: our worker behind KServe's arguments.
    "kserve/sklearnserver": Image(
        (sys.executable, str(LAB / "sklearnserver.py"), "--cache", "{cache}"), OURS
    ),
    # The real one, of the version of the lab.
    "kube-scheduler": Image(SCHEDULER, programs={"kube-scheduler": SCHEDULER}),
    # A server that tells who it is, can be slow, late or forward: see echo.py.
    "lab/echo": Image((sys.executable, str(LAB / "echo.py")), OURS),
}


class NoSuchImage(Exception):
    """The image has no entry and the pod no command."""


def find(image: str) -> Image | None:
    """The entry of the longest name that the image's name ends in."""
    name = image.split("@", 1)[0]
    folder, slash, last = name.rpartition("/")
    name = folder + slash + last.split(":", 1)[0]
    names = [known for known in IMAGES if name == known or name.endswith(f"/{known}")]
    return IMAGES[max(names, key=len)] if names else None


def argv(
    image: str, *, command: Sequence[str], args: Sequence[str], ip: str, cache: Path
) -> tuple[str, ...]:
    """The local command line. Raises `NoSuchImage`."""
    known = find(image)
    if known is None and not command:
        raise NoSuchImage(f"{image}: not in the lab's image map (tests/lab/images.py)")
    own = known.entrypoint if known else ()
    filled = {"{ip}": ip, "{cache}": str(cache)}
    if known and command and command[0] in known.programs:
        command = (*known.programs[command[0]], *command[1:])
    words = (*(command or own), *args)
    return tuple(_fill(word, filled) for word in words)


def _fill(word: str, values: Mapping[str, str]) -> str:
    for mark, value in values.items():
        word = word.replace(mark, value)
    return word
