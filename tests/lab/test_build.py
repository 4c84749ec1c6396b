# SPDX-License-Identifier: Apache-2.0
"""Where the lab's programs come from, and what is said where there can be none."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import build, network
from tests.lab.parts import REPOSITORY


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine where nothing was built, and nothing can be."""
    monkeypatch.delenv("TIDEGATE_LAB_BIN", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def with_programs(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in build.PROGRAMS:
        (folder / name).touch()
    return folder


def test_a_named_folder_comes_first(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_programs(build.cache())
    named = with_programs(empty / "mine")
    monkeypatch.setenv("TIDEGATE_LAB_BIN", str(named))
    assert build.build() == build.Binaries(named)


def test_a_named_folder_that_lacks_a_program_is_refused_by_its_name(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGATE_LAB_BIN", str(empty))
    with pytest.raises(build.CannotBuild, match=r"TIDEGATE_LAB_BIN=.* lacks one of kube, helm"):
        build.build()


def test_what_was_built_is_found_again_without_go(empty: Path) -> None:
    built = with_programs(build.cache())
    assert empty in built.parents
    assert build.build() == build.Binaries(built)


def test_without_go_it_says_what_to_install(empty: Path) -> None:
    with pytest.raises(build.CannotBuild, match="install Go"):
        build.build()


def test_other_sources_are_built_beside(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.cache()
    other = empty / "control-plane"
    other.mkdir()
    for name in ("go.mod", "go.sum", "main.go"):
        (other / name).write_text("// changed")
    monkeypatch.setattr(build, "CONTROL_PLANE", other)
    assert build.cache() != before


def test_a_missing_program_is_told_with_its_package(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(network, "PATH", str(empty))
    assert network.why_impossible() == "there is no ip; install iproute2"


@pytest.mark.parametrize(("required", "status"), [("0", 0), ("1", 1)])
def test_make_lab_goes_on_without_a_lab_unless_it_is_required(
    required: str, status: int, empty: Path
) -> None:
    env = {"PATH": str(empty), "XDG_CACHE_HOME": str(empty), "TIDEGATE_LAB_REQUIRED": required}
    done = subprocess.run(
        [sys.executable, "-m", "tests.lab", "build"],
        cwd=REPOSITORY,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert done.stderr.startswith("lab: its tests will be skipped: ")
    assert done.stderr.count("\n") == 1
