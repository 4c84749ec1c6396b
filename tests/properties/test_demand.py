# SPDX-License-Identifier: Apache-2.0
"""Totals of demand, over stories that nobody thought of: pods come, go, restart, fall silent."""

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.adapters.engines.growth import Look, followed_up
from autoscaler.adapters.engines.page import Page, read_page
from autoscaler.adapters.kubernetes.ledger import Ledger
from autoscaler.core.routes import Demand
from autoscaler.core.signals import NoReading

PODS = ("a", "b", "c")
pods = st.sampled_from(PODS)
numbers = st.integers(1, 20)

events = st.one_of(
    st.tuples(st.just("comes straight"), pods, numbers),
    st.tuples(st.just("comes to the activator"), st.just(""), numbers),
    st.tuples(st.just("is released"), pods, numbers),
    st.tuples(st.just("gives up"), st.just(""), numbers),
    st.tuples(st.just("pod restarts"), pods, numbers),
    st.tuples(st.just("pod appears"), pods, numbers),
    st.tuples(st.just("pod goes"), pods, numbers),
    st.tuples(st.just("pod is silent"), pods, numbers),
    st.tuples(st.just("activators fall silent"), st.just(""), numbers),
)
ticks = st.lists(st.tuples(st.floats(0.5, 10), st.lists(events, max_size=4)), max_size=30)


@dataclass
class Cluster:
    """What really happens. `came` counts every request that arrived anywhere, once."""

    counters: dict[str, int] = field(default_factory=dict)
    activator: Demand = field(default_factory=lambda: Demand("x"))
    silent: set[str] = field(default_factory=set)
    mute: bool = False
    came: int = 0
    seen_to_come: bool = False  # something came since the last look, where it can be seen

    def happens(self, what: str, pod: str, number: int) -> None:
        known = self.activator
        if what == "comes straight" and pod in self.counters:
            self.counters[pod] += number
            self.came += number
            self.seen_to_come |= pod not in self.silent
        elif what == "comes to the activator":
            self.activator = replace(
                known, held=known.held + number, requests_total=known.requests_total + number
            )
            self.came += number
            self.seen_to_come |= not self.counters and not self.mute
        elif what == "is released" and pod in self.counters:
            released = min(number, known.held)
            self.counters[pod] += released
            self.activator = replace(known, held=known.held - released)
        elif what == "gives up":
            self.activator = replace(known, held=max(0, known.held - number))
        elif what == "pod restarts" and pod in self.counters:
            self.counters[pod] = 0
        elif what == "pod appears":
            self.counters.setdefault(pod, 0)
        elif what == "pod goes":
            self.counters.pop(pod, None)
        elif what == "pod is silent":
            self.silent.add(pod)
        elif what == "activators fall silent":
            self.mute = True

    def looks(self, at_s: float, before: dict[str, Look]) -> dict[str, Look]:
        told = {pod: came for pod, came in self.counters.items() if pod not in self.silent}
        return {
            pod: followed_up(_page(came), at_s=at_s, before=before.get(pod))
            for pod, came in told.items()
        }


def _page(came: int) -> Page:
    page = read_page(
        f"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"
        f"vllm:request_success_total {came}\nvllm:generation_tokens_total 0\n"
    )
    assert isinstance(page, Page)
    return page


@settings(max_examples=300)
@given(ticks)
def test_totals_never_fall_and_every_arrival_raises_them(
    story: list[tuple[float, list[tuple[str, str, int]]]],
) -> None:
    """A request may be counted twice where counting passes from one to the other, never missed."""
    cluster, ledger, looks, now_s = Cluster(), Ledger(), dict[str, Look](), 0.0
    ledger.enter(cluster.activator, {}, now_s=now_s)
    for after_s, happenings in story:
        now_s += after_s
        cluster.silent, cluster.mute, cluster.seen_to_come = set(), False, False
        restarted = {pod for what, pod, _ in happenings if what in {"pod restarts", "pod goes"}}
        for what, pod, number in sorted(
            happenings, key=lambda happening: "silent" not in happening[0]
        ):
            cluster.happens(what, pod, number)
        before = (ledger.requests, ledger.request_s, ledger.held_s, ledger.tokens)
        looks = cluster.looks(now_s, looks)
        ledger.enter(NoReading("silent") if cluster.mute else cluster.activator, looks, now_s=now_s)
        after = (ledger.requests, ledger.request_s, ledger.held_s, ledger.tokens)
        assert all(new >= old for old, new in zip(before, after, strict=True))
        if cluster.seen_to_come and not restarted:
            assert ledger.requests > before[0]


@settings(max_examples=300)
@given(st.lists(st.tuples(st.floats(0.5, 4), numbers, numbers), max_size=30))
def test_a_service_that_wakes_and_serves_counts_each_request_about_once(
    story: list[tuple[float, int, int]],
) -> None:
    """Held ones too: one for each look is the most that is counted twice."""
    cluster, ledger, looks, now_s = Cluster(), Ledger(), dict[str, Look](), 0.0
    ledger.enter(cluster.activator, {}, now_s=now_s)
    for look, (after_s, came, released) in enumerate(story):
        now_s += after_s
        if look == 5:
            cluster.happens("pod appears", "a", 1)
        cluster.happens("comes to the activator", "", came)
        cluster.happens("is released", "a", released)
        looks = cluster.looks(now_s, looks)
        ledger.enter(cluster.activator, looks, now_s=now_s)
        held = cluster.activator.held if look >= 5 else 0  # counted when the pod shows them
        assert cluster.came - held <= ledger.requests <= cluster.came + look + 20
