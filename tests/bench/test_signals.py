# SPDX-License-Identifier: Apache-2.0
"""`tidegate bench signals`: the page that is played, the figures, refusals, and one short run."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from autoscaler.adapters.engines.page import Page, read_page
from autoscaler.bench.signals import Turn, figures_of, ratios_of
from autoscaler.bench.signals_page import page
from autoscaler.bench.signals_scraper import OURS, PLAIN, Seen
from autoscaler.core.signals import Measure

ALONE = Seen(seconds=1.0, cpu_s=1.0, core_s=1.0, scrapes=0, page_s=0.0002)
SCRAPING = Seen(
    seconds=10.0,
    cpu_s=8.0,
    core_s=9.0,
    scrapes=20_000,
    fresh_ratio=1.0,
    least_fresh_ratio=1.0,
    age_p50_s=0.5,
    age_p99_s=1.1,
)


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "autoscaler.bench.cli", "signals", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_page_is_as_long_as_a_replicas_and_read_as_vllm() -> None:
    """Both readers take it, and it says something for every measure that vLLM has."""
    text = page(3).decode()
    assert 45_000 < len(text) < 60_000
    read = read_page(text)
    assert isinstance(read, Page)
    assert read.engine.name == "vLLM"
    assert all(read.total(measure) is not None for measure in read.engine.samples)
    assert sum(len(family.samples) for family in text_string_to_metric_families(text)) > 400


def test_what_the_page_counts_never_falls() -> None:
    pages = [read_page(page(step).decode()) for step in range(4)]
    tokens = [one.total(Measure.TOKENS_TOTAL) or 0 for one in pages if isinstance(one, Page)]
    assert len(tokens) == 4
    assert tokens == sorted(tokens)
    assert tokens[-1] > tokens[0] > 0


def test_figures_are_medians_over_the_rounds_and_count_only_good_scrapes() -> None:
    slow = Turn(ALONE, replace(SCRAPING, cpu_s=9.9, scrapes=11_000, failed=1000))
    figures = figures_of([slow, Turn(ALONE, SCRAPING), Turn(ALONE, SCRAPING)], pods=2000)
    assert figures["read_us_per_page"] == 200.0
    assert figures["pods_per_s"] == 2000.0
    assert figures["cpu_s_per_1000_scrapes"] == 0.4
    assert figures["others_cores"] == 0.1
    assert figures["asked_every_s"] == 1.0
    assert figures["failed"] == 1000


def test_what_could_not_be_had_is_none_and_no_ratio_is_made_of_it() -> None:
    nothing = replace(SCRAPING, scrapes=0, age_p50_s=None, age_p99_s=None, fresh_ratio=0.0)
    figures = figures_of([Turn(ALONE, nothing)], pods=2000)
    assert figures["cpu_s_per_1000_scrapes"] is None
    assert figures["asked_every_s"] is None
    assert figures["age_p99_s"] is None
    ratios = ratios_of({OURS: figures, PLAIN: figures})
    assert ratios["plain_scrape_over_ours"] is None
    assert ratios["ten_times_met"] is None


@pytest.mark.parametrize(
    ("plain_s", "plain_cpu_s", "met"), [(0.002, 80.0, True), (0.0019, 80.0, False)]
)
def test_ten_times_is_met_by_reading_and_by_all_of_a_scrape(
    plain_s: float, plain_cpu_s: float, *, met: bool
) -> None:
    ours = figures_of([Turn(ALONE, SCRAPING)], pods=2000)
    plain = figures_of(
        [Turn(replace(ALONE, page_s=plain_s), replace(SCRAPING, cpu_s=plain_cpu_s))], pods=2000
    )
    ratios = ratios_of({OURS: ours, PLAIN: plain})
    assert ratios["plain_scrape_over_ours"] == 10.0
    assert ratios["ten_times_met"] is met


def test_wrong_options_end_with_2_and_a_line_for_each() -> None:
    ran = bench("--pods", "0", "--rounds", "99", "--seconds", "nan")
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.splitlines() == [
        "tidegate bench signals: --pods 0: a number from 1 to 20000",
        "tidegate bench signals: --rounds 99: a number from 1 to 20",
        "tidegate bench signals: --seconds nan: above 0 and up to 300",
    ]


def test_a_short_run_scrapes_every_pod_with_both_readers() -> None:
    """Nothing is asserted of how fast it is."""
    ran = bench("--pods", "3", "--seconds", "0.5", "--rounds", "1", "--json")
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["command"] == "tidegate bench signals"
    for reader in (OURS, PLAIN):
        assert report[reader]["failed"] == 0
        assert report[reader]["fresh_ratio"] == 1.0
        assert report[reader]["read_us_per_page"] > 0
    assert report["plain_read_over_ours"] > 0
