# SPDX-License-Identifier: Apache-2.0
"""Targets of parts and of queries are read as they are meant, or refused with what is wrong."""

import pytest

from autoscaler.contract import NAME_SHOWN, QUERY_MOST, targets
from autoscaler.core.policy import Target
from autoscaler.core.signals import Query, Signal
from autoscaler.text import Unreadable


@pytest.mark.parametrize(
    ("text", "per_replica"),
    [("kv=80%", 0.8), ("kv=0.8", 0.8), ("kv = 1", 1.0), ("kv=100%", 1.0)],
)
def test_a_part_is_a_percentage_or_a_ratio(text: str, per_replica: float) -> None:
    """Both spellings mean the same."""
    assert targets(text) == (Target(Signal.KV, per_replica),)
    assert targets(text.replace("kv", "gpu-utilization"))[0].per_replica == per_replica


@pytest.mark.parametrize(
    ("text", "promql"),
    [
        ("prometheus(up)=5", "up"),
        ("prometheus( up ) = 5", "up"),
        ('prometheus(sum(rate(x{a="b,c"}[1m])))=5', 'sum(rate(x{a="b,c"}[1m]))'),
        ("prometheus(x == 1)=5", "x == 1"),
        ('prometheus(x{a="=)(,"})=5', 'x{a="=)(,"}'),
        (r'prometheus(x{a="\")"})=5', r'x{a="\")"}'),
        ("prometheus(x{a='it\"s'})=5", "x{a='it\"s'}"),
        ("prometheus(x{a=`\\`})=5", "x{a=`\\`}"),
        ("prometheus(max by (a, b) (x) or vector(0))=5", "max by (a, b) (x) or vector(0)"),
    ],
)
def test_a_query_may_hold_brackets_quotes_commas_and_equal_signs(text: str, promql: str) -> None:
    """Whatever PromQL says stays as it was written, beside other targets too."""
    assert targets(text) == (Target(Query(promql), 5.0),)
    assert targets(f"rps=10, {text}, kv=80%") == (
        Target(Signal.RPS, 10.0),
        Target(Query(promql), 5.0),
        Target(Signal.KV, 0.8),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kv=8", ["kv", "part of 1 or a percentage", "not 8"]),
        ("gpu-utilization=70", ["gpu-utilization", "percentage", "not 70"]),
        ("kv=0%", ["above 0%", "up to 100%"]),
        ("kv=150%", ["up to 100%"]),
        ("kv=0." + "0" * 300 + "1%", ["above 0%"]),
        ("kv=0", ["above 0"]),
        ("kv", ["kv lacks its amount", "kv=80%"]),
        ("concurrency=80%", ["concurrency", "above 0", "'80%'"]),
        ("kv=80%, kv=0.5", ["kv stands there twice"]),
        ("prometheus(up)=1, prometheus( up )=2", ["prometheus(up) stands there twice"]),
        ("prometheus()=5", ["holds no query"]),
        ("prometheus(  )=5", ["holds no query"]),
        ("prometheus(up)", ["prometheus(up) lacks its amount", "prometheus(up)=8"]),
        ('prometheus(x{a="b"})', ["lacks its amount"]),
        ("prometheus(up)=-5", ["above 0", "'-5'"]),
        ("prometheus(up)=5%", ["above 0", "'5%'"]),
        ("prometheus(sum(up)=5", ["a bracket is not closed"]),
        ("prometheus(up))=5", ["')' closes no bracket"]),
        ("prometheus(rate(x[1m)))=5", ["')' closes no bracket"]),
        ("prometheus(x{a='b})=5", ["a quote is not closed"]),
        ("prometheus(a)=1 prometheus(b)=2", ["')' closes no bracket"]),
        ("prometheus(a\n+ b)=2", ["one line"]),
        (f"prometheus({'x' * (QUERY_MOST + 1)})=5", [str(QUERY_MOST), "recording rule"]),
        ("prometeus(x)=5", ["unknown signal", "did you mean 'prometheus(QUERY)'?"]),
        (
            'prometeus(sum(rate(a_rather_long_name{namespace="here", pod=~"llm-.*"}[1m])))=5',
            ["unknown signal", "did you mean 'prometheus(QUERY)'?"],
        ),
        ("prometheus=5", ["did you mean 'prometheus(QUERY)'?"]),
        ("gpu_utilization=70%", ["did you mean 'gpu-utilization'?"]),
        ("concurrency=(8)", ["concurrency wants an amount above 0", "'(8)'"]),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_target_that_cannot_be_read_says_what_is_wrong(text: str, words: list[str]) -> None:
    """Each mistake by its name, with what to write instead."""
    with pytest.raises(Unreadable) as caught:
        targets(text)
    for word in words:
        assert word in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_long_query_does_not_crowd_out_what_is_wrong_with_it() -> None:
    """The name is shortened, the reason is not."""
    with pytest.raises(Unreadable) as caught:
        targets(f"prometheus({'x' * QUERY_MOST})=many")
    assert str(caught.value).endswith("wants an amount above 0, not 'many'")
    assert len(str(caught.value)) < NAME_SHOWN + 50
