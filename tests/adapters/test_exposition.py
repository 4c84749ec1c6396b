# SPDX-License-Identifier: Apache-2.0
"""The reader of metrics pages: both formats, only what is asked for, and nothing half believed."""

import re
from collections.abc import Iterable, Iterator, Mapping
from math import inf, isnan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample as Known

from autoscaler.adapters.engines.exposition import Sample, named, samples
from autoscaler.core.signals import NoReading


def read(text: str, names: re.Pattern[str] | None = None) -> list[Sample]:
    found = samples(text, names=names)
    assert isinstance(found, tuple), found
    return list(found)


def why_not(text: str, names: re.Pattern[str] | None = None) -> str:
    found = samples(text, names=names)
    assert isinstance(found, NoReading), found
    return found.why


@pytest.mark.parametrize(
    ("line", "labels", "value"),
    [
        pytest.param("x 1", {}, 1.0, id="the least that there is"),
        pytest.param("x\t1", {}, 1.0, id="a tab"),
        pytest.param("  x  1  ", {}, 1.0, id="blanks around it"),
        pytest.param("x{} 1", {}, 1.0, id="no label in braces"),
        pytest.param('x{a="b",} 1', {"a": "b"}, 1.0, id="a comma too many"),
        pytest.param('x{ a = "b" , c="d" } 1', {"a": "b", "c": "d"}, 1.0, id="blanks in braces"),
        pytest.param('x{a=""} 1', {"a": ""}, 1.0, id="an empty label"),
        pytest.param('x{a="b"}1', {"a": "b"}, 1.0, id="no blank before the number"),
        pytest.param('x{a="}"} 1', {"a": "}"}, 1.0, id="a brace in a label"),
        pytest.param('x{a="#,=\\"{"} 1', {"a": '#,="{'}, 1.0, id="all that could mean something"),
        pytest.param('x{a="1\\n2\\\\n"} 1', {"a": "1\n2\\n"}, 1.0, id="escapes"),
        pytest.param('x{a="\\d"} 1', {"a": "\\d"}, 1.0, id="what is no escape stays"),
        pytest.param('x{a="é 模型"} 1', {"a": "é 模型"}, 1.0, id="letters of the world"),
        pytest.param("x 1.5e+03", {}, 1500.0, id="an exponent"),
        pytest.param("x .5", {}, 0.5, id="no digit before the point"),
        pytest.param("x 5.", {}, 5.0, id="none behind it"),
        pytest.param("x -7", {}, -7.0, id="a negative is for others to judge"),
        pytest.param("x +Inf", {}, inf, id="infinity"),
        pytest.param("x Inf", {}, inf, id="infinity without a sign"),
        pytest.param("x -inf", {}, -inf, id="minus infinity"),
        pytest.param("x 18446744073709551615", {}, 2.0**64, id="more digits than a float has"),
    ],
)
def test_a_line_is_read(line: str, labels: Mapping[str, str], value: float) -> None:
    """As exporters write it, however oddly; and with the line ends of another system."""
    for page in (f"{line}\n", f"# TYPE x gauge\r\n{line}\r\n", f"\n\n{line}\n\n"):
        assert read(page) == [Sample("x", labels, value)]


def test_nan_is_read_as_such() -> None:
    """It says that the exporter does not know; what that means is for others."""
    [sample] = read("x NaN\n")
    assert isnan(sample.value)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("x", id="no number"),
        pytest.param("x many", id="a word"),
        pytest.param("x 1_000", id="a number for programmers"),
        pytest.param("x 0x1f", id="a number of programmers"),
        pytest.param("x 1e", id="half an exponent"),
        pytest.param("x ١", id="a digit of another script"),
        pytest.param("x 1 2 3", id="too many numbers"),
        pytest.param("x 1 soon", id="a word for a time"),
        pytest.param('x{a="b} 1', id="a quote that stays open"),
        pytest.param("x{a=b} 1", id="no quotes"),
        pytest.param('x{a="b" c="d"} 1', id="no comma"),
        pytest.param('x{,a="b"} 1', id="a comma too early"),
        pytest.param('x{a="b",a="c"} 1', id="a label twice"),
        pytest.param('x{1a="b"} 1', id="a label that is a number"),
        pytest.param('x{a="b" 1', id="a brace that stays open"),
    ],
)
def test_a_broken_line_breaks_the_page_of_those_who_asked_for_it(line: str) -> None:
    """And of nobody else: a page has thousands of lines that nobody reads."""
    page = f"before 1\n{line}\nafter 2\n"
    assert why_not(page).startswith("not in Prometheus' text format: '")
    assert [s.value for s in read(page, named(["before", "after"]))] == [1, 2]


def test_only_whole_names_are_what_was_asked_for() -> None:
    """Names that begin or end alike are other metrics."""
    page = 'a 1\nab 2\na_total 3\na:b 4\nb_a 5\n# a 6\na{b="c"} 7\n  a 8\n'
    assert [sample.value for sample in read(page, named(["a"]))] == [1, 7, 8]
    assert [s.value for s in read(page, re.compile("a|a_.*"))] == [1, 3, 7, 8]
    assert read(page, named([])) == []


def test_times_are_milliseconds_in_one_format_and_seconds_in_the_other() -> None:
    """What ends with # EOF is OpenMetrics."""
    assert read("x 1 1700000000500\n") == [Sample("x", {}, 1.0, 1700000000.5)]
    assert read("x 1 1700000000.5\n# EOF\n") == [Sample("x", {}, 1.0, 1700000000.5)]
    assert read("x 1 1700000000.5\r\n# EOF") == [Sample("x", {}, 1.0, 1700000000.5)]


def test_an_exemplar_is_no_part_of_the_number() -> None:
    """It names one request of a bucket."""
    page = 'x_bucket{le="1"} 8 # {trace_id="a} 9"} 0.67 1700000000.1\n# EOF\n'
    assert read(page) == [Sample("x_bucket", {"le": "1"}, 8.0)]


@pytest.mark.parametrize(
    ("page", "why"),
    [
        pytest.param("x 1\ny 12", "cut off", id="the last number may have more digits"),
        pytest.param("x 1\n# HELP y", "cut off", id="cut off in a comment"),
        pytest.param("<!DOCTYPE html><p>x 1\n", "HTML", id="a web page"),
        pytest.param("\n <error/>\n", "HTML or XML", id="another page"),
        pytest.param("\x1f\ufffd\x08\n", "binary", id="something compressed"),
        pytest.param("\x00x 1\n", "binary", id="something else"),
    ],
)
def test_a_page_that_cannot_be_believed_is_refused_whole(page: str, why: str) -> None:
    """What is missing from it would look like what is not there."""
    assert why in why_not(page, named(["x"]))


def test_a_page_without_a_sample_has_none() -> None:
    """That is no mistake: a server may have nothing to tell yet."""
    assert read("") == read("\n\n") == read("# HELP x Y.\n# TYPE x gauge\n") == []


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBERS = st.floats() | st.integers(-(2**64), 2**64).map(float)
NAMES = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
LABELS = st.lists(st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True), max_size=3, unique=True)


@st.composite
def registries(draw: st.DrawFn) -> CollectorRegistry:
    """Metrics of all kinds, with odd labels and numbers."""
    registry = CollectorRegistry()
    for number in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from([Gauge, Counter, Histogram]))
        labels = draw(LABELS)
        metric = kind(f"m{number}_{draw(NAMES)}s", draw(TEXTS), labels, registry=registry)
        for _ in range(draw(st.integers(0, 3))):
            of = metric.labels(*(draw(TEXTS) for _ in labels)) if labels else metric
            if isinstance(of, Gauge):
                of.set(draw(NUMBERS))
            elif isinstance(of, Counter):
                of.inc(abs(draw(st.floats(allow_nan=False))))
            elif isinstance(of, Histogram):
                of.observe(abs(draw(st.floats(allow_nan=False))))
    return registry


def reference(registry: CollectorRegistry) -> Iterator[tuple[str, list[Known]]]:
    """Each format's text, and what the parser of prometheus_client reads in it."""
    for generate, families in (
        (generate_latest, text_string_to_metric_families),
        (generate_openmetrics, openmetrics_families),
    ):
        text = generate(registry).decode()
        yield text, [sample for family in families(text) for sample in family.samples]


def comparable(found: Iterable[Known | Sample]) -> list[str]:
    return sorted(f"{s.name} {sorted(s.labels.items())} {s.value}" for s in found)


@given(registries())
def test_a_page_is_read_as_the_reference_parser_reads_it(registry: CollectorRegistry) -> None:
    """Names, labels and numbers, in both formats."""
    for text, known in reference(registry):
        assert comparable(read(text)) == comparable(known)


@given(st.text() | st.lists(st.sampled_from(['x{a="', "b", '"', "}", " ", "1", "\n", ","])))
def test_no_text_breaks_the_reader(text: str | list[str]) -> None:
    """Whatever a port may answer: samples, or why there are none."""
    page = text if isinstance(text, str) else "".join(text)
    for whole in (page, f"{page}\n", f"x {page}\n# EOF\n"):
        assert isinstance(samples(whole), tuple | NoReading)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param("x" + " " * 200_000 + "\n", id="blanks"),
        pytest.param("x " + "1" * 200_000 + "z\n", id="digits"),
        pytest.param('x{a="' + "b" * 200_000 + "\n", id="a label without end"),
        pytest.param("x{" + '"' * 200_000 + "\n", id="quotes"),
        pytest.param("x{" + 'a="b",' * 40_000 + "\n", id="labels without end"),
        pytest.param("x 1 #" + " #" * 100_000 + "z\n", id="comments"),
    ],
)
def test_a_hostile_page_takes_no_longer_than_its_length(page: str) -> None:
    """An expression that tried every way to split it would not come to an end today."""
    assert isinstance(samples(page), tuple | NoReading)
