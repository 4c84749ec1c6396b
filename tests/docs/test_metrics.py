# SPDX-License-Identifier: Apache-2.0
"""The page of metrics knows every metric, and every generated page is current."""

import re
from pathlib import Path

import pytest

from docs.generate import DOCS, PAGES
from docs.metrics import collectors

ROOT = Path(__file__).parents[2]
PACKAGES = ("autoscaler", "scheduler_extender", "serving")
SOURCES = {
    path: path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("*.py")
}


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_says_what_the_code_says(name: str) -> None:
    """`make docs` was run after the last change."""
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name]()


def test_every_collector_of_metrics_is_asked() -> None:
    """A new one has to be named in docs/metrics.py, with the process that has it."""
    written = {
        name
        for text in SOURCES.values()
        for name in re.findall(r"^class ([A-Z]\w+)\((?:\w+, )*Collector\)", text, re.MULTILINE)
    }
    asked = {type(collector).__name__ for of in collectors().values() for collector in of}
    assert written <= asked


def test_every_metric_that_the_code_names_is_on_the_page() -> None:
    """Also what is counted directly, without a collector."""
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(tidegate_[a-z_]+)`", page))
    for path, text in SOURCES.items():
        for name in re.findall(r'"(tidegate_[a-z]+_[a-z_]*[a-z])"', text):
            assert {name, f"{name}_total"} & documented, f"{path}: {name}"
