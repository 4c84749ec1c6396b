# SPDX-License-Identifier: Apache-2.0
"""The image: that it has what the chart runs. No container engine is needed, nor is one used."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.chart.rendering import ROOT, Helm
from tests.chart.test_objects import EVERYTHING

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def copied() -> list[str]:
    """What the build stage takes from the repository."""
    lines = re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", DOCKERFILE)
    return [name for line in lines for name in line.split()]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made of nothing but what the image copies, unpacked."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, source)
    words = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(made))
    subprocess.run([sys.executable, *words, str(source)], check=True, timeout=120)  # noqa: S603
    (wheel,) = made.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(made / "site")
    return made / "site"


def test_every_command_of_the_chart_is_in_it(helm: Helm, installed: Path, tmp_path: Path) -> None:
    """Each answers --help from the wheel alone, and not from this repository."""
    pods = helm.render(EVERYTHING).pods().values()
    containers = [one for pod in pods for one in pod["spec"]["containers"]]
    ours = {one["args"][0] for one in containers if "/kube-scheduler" not in one["image"]}
    assert {"run", "activator", "extender", "admission", "node-agent"} <= ours
    program = (
        "import autoscaler, sys; print(autoscaler.__file__, file=sys.stderr); "
        "from autoscaler.cli import main; main()"
    )
    for command in sorted(ours):
        done = subprocess.run(  # noqa: S603  our own words
            [
                sys.executable,
                "-c",
                program,
                command,
                "--help",
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith(str(installed)), done.stderr
        assert "Usage" in done.stdout


def test_files_that_are_no_modules_are_in_it_too(installed: Path) -> None:
    """Interfaces that others compile, programs that are built where they are measured."""
    tracked = subprocess.run(
        ["git", "ls-files", "autoscaler", "scheduler_extender", "serving", "simulations"],  # noqa: S607
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not [name for name in tracked.stdout.split() if not (installed / name).exists()]


def test_it_runs_as_the_chart_has_it(helm: Helm) -> None:
    """The same user, and `tidegate` in front of the arguments."""
    assert 'ENTRYPOINT ["tidegate"]' in DOCKERFILE
    (user,) = re.findall(r"(?m)^USER (\d+):", DOCKERFILE)
    context = helm.render({}).pods()["tidegate-controller"]["spec"]["securityContext"]
    assert context["runAsUser"] == int(user)


def test_what_is_copied_reaches_the_engine() -> None:
    """Else the build fails at its first step."""
    kept = set(re.findall(r"(?m)^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8")))
    assert set(copied()) == kept
