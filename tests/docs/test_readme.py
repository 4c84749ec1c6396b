# SPDX-License-Identifier: Apache-2.0
"""What the README shows works as it stands there."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from autoscaler.settings import parse

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_example_of_a_config_file_is_accepted(tmp_path: Path) -> None:
    """Copied as it is, beside a model of that name, it starts."""
    (example,) = blocks("toml")
    (tmp_path / "iris.skops").touch()
    settings = parse(tomllib.loads(example), base=tmp_path)
    assert settings.services[0].policy.max_replicas == 4


def test_every_verb_that_the_readme_names_exists() -> None:
    """No promise of a command that is not there."""
    named = set(re.findall(r"bin/tidegate (\w+)", "\n".join(blocks("sh"))))
    assert named
    assert named <= {point.name for point in entry_points(group="tidegate.commands")}


@pytest.mark.parametrize("page", [README, *(p.read_text() for p in (ROOT / "docs").rglob("*.md"))])
def test_links_and_files_that_pages_name_are_there(page: str) -> None:
    """A moved file takes its mentions along."""
    for target in re.findall(r"\]\(([^)#:]+?)\)", page):
        assert any((base / target).exists() for base in (ROOT, ROOT / "docs", ROOT / "docs/adr")), (
            target
        )
    packages = ("autoscaler", "serving", "simulations", "tests", "docs")
    for name in re.findall(rf"`((?:{'|'.join(packages)})/[\w/.]+)", page):
        assert (ROOT / name).exists(), name


def test_every_verb_teaches() -> None:
    """`--help` of each verb works, and looks like the others'."""
    for point in entry_points(group="tidegate.commands"):
        done = subprocess.run(  # noqa: S603  our own command
            [sys.executable, "-m", "autoscaler.cli", point.name, "--help"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert len(done.stdout.split()) > 25, point.name
        assert "\u256d" not in done.stdout, f"{point.name}: help is plain text, like the others'"
