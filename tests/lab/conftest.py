# SPDX-License-Identifier: Apache-2.0
"""One lab for all its tests; they come last, since from then on the process has another network."""

import os
from collections.abc import Generator, Iterator
from typing import NoReturn

import pytest

from tests.lab import build, network
from tests.lab.installed import Tidegate
from tests.lab.lab import Lab, kserve_crds

REQUIRED = "TIDEGATE_LAB_REQUIRED"  # 1 where a lab that cannot be is a failure
# A dozen programs on a busy machine, each in its own time: what fails once is tried once more, and
# listed as RERUN at the end of the run, to be looked at. What is wrong fails twice.
TRIES_MORE = 1
TEST_MAX_S = 300  # of a test that sets no limit itself; the first one also waits for the lab

_FAILED = pytest.StashKey[bool]()
_TOLD = pytest.StashKey[list[str]]()  # lines for the end of the run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every other test runs in the network it was started in."""
    of_the_lab = [item for item in items if item.get_closest_marker("lab")]
    for item in of_the_lab:
        item.add_marker(pytest.mark.flaky(reruns=TRIES_MORE))
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_MAX_S))
    items.sort(key=lambda item: item.get_closest_marker("lab") is not None)


def _unless_required(why: str) -> NoReturn:
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{REQUIRED} is set, and there can be no lab: {why}", pytrace=False)
    pytest.skip(f"no lab: {why}")


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A running Kubernetes; skips with the reason where there can be none."""
    if (why := network.why_impossible()) is not None:
        _unless_required(why)
    binaries = build.find()
    if binaries is None:
        _unless_required("its programs are not built; run `make lab`")
    lab = Lab(binaries)
    request.config.stash[_FAILED] = True  # until it is up
    told = request.config.stash.setdefault(_TOLD, [])
    try:
        lab.start()
        request.config.stash[_FAILED] = False
        told.append(f"lab: Kubernetes was up after {lab.start_s:.1f} s")
        yield lab
    finally:
        failed = request.config.stash[_FAILED]
        lab.close(keep=failed)
        if failed:
            told.append(f"lab: its logs are kept in {lab.folder}")


@pytest.fixture(scope="session")
def tidegate(lab: Lab) -> Tidegate:
    """Tidegate as its chart installs it, once for all tests."""
    if kserve_crds() is not None:
        lab.kserve()  # first: a kind that is installed later is found within a minute
    tidegate = Tidegate(lab)
    tidegate.install()
    return tidegate


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in terminalreporter.config.stash.get(_TOLD, ()):
        terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the lab's components and pods said last."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and isinstance(lab, Lab):
        item.config.stash[_FAILED] = True
        report.sections.append(("lab logs", lab.logs()))
        report.sections.append(("logs of pods", lab.pod_logs(since=call.start)))
    return report
