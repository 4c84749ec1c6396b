# SPDX-License-Identifier: Apache-2.0
"""Servers without a gauge of what runs: when it is proven that they do nothing, and when not."""

import pytest

from autoscaler.adapters.engines.growth import Look, followed_up
from autoscaler.adapters.engines.page import Page, page_of, read_page
from autoscaler.adapters.engines.stillness import LOST_AFTER_S, QUIET_CORES, Moved, Stillness
from autoscaler.adapters.plain_http import Answer, At
from autoscaler.core.signals import Measure, NoReading

IN, CAME = Measure.IN_FLIGHT, Measure.REQUESTS_TOTAL

# As KServe's Python server 0.21 writes them before its first request: types, and no sample.
UNTOUCHED = "".join(
    f"# HELP request_{what}_seconds time\n# TYPE request_{what}_seconds histogram\n"
    for what in ("preprocess", "postprocess", "predict", "explain")
)


def kserve(begun: float = 0, predicted: float = 0, explained: float = 0, cpu_s: float = 1.0) -> str:
    """A page of one model, once it was asked."""
    counts = {"preprocess": begun, "predict": predicted, "explain": explained}
    told = "".join(
        f'request_{what}_seconds_count{{model_name="iris"}} {count}\n'
        for what, count in counts.items()
    )
    return f"process_cpu_seconds_total {cpu_s}\n{UNTOUCHED}{told}"


def looked(*pages: str, every_s: float = 1.0) -> Look:
    """The last of several looks."""
    look: Look | None = None
    for n, text in enumerate(pages):
        page = read_page(text)
        assert isinstance(page, Page), page
        look = followed_up(page, at_s=100.0 + n * every_s, before=look)
    assert look is not None
    return look


def test_one_look_proves_nothing() -> None:
    """What its process does is seen from one look to the next."""
    assert looked(kserve()).working == NoReading("it was asked only once yet")


def test_a_server_that_was_never_asked_is_idle() -> None:
    """Its histograms have no sample before the first request; a new service sleeps all the same."""
    page = f"process_cpu_seconds_total 0.9\n{UNTOUCHED}"
    look = looked(page, page)
    assert look.page.engine.key == "kserve"
    assert (look.working, look.page.total(CAME)) == (0, 0)


@pytest.mark.parametrize(
    ("page", "running"),
    [
        pytest.param(kserve(9, predicted=9), 0, id="all ended"),
        pytest.param(kserve(9, predicted=7), 2, id="two are with the model"),
        pytest.param(kserve(9, predicted=4, explained=4), 1, id="explanations end too"),
        pytest.param(kserve(1), 1, id="the very first one"),
    ],
)
def test_what_began_and_has_not_ended_is_in_flight(page: str, running: float) -> None:
    """Whatever it waits for: it need not compute."""
    assert looked(page, page).working == running


def test_a_process_that_computes_is_not_idle() -> None:
    """Answers that stream after the timed part, or that the server does not time at all."""
    pages = [kserve(5, 5, cpu_s=10.0 + 0.5 * n) for n in range(5)]
    assert looked(*pages).working == 1


def test_a_short_spell_of_work_is_no_request_and_passes() -> None:
    """A garbage collection, or a page of metrics that took long."""
    before = [kserve(5, 5, cpu_s=10.0)] * 3
    spell = [kserve(5, 5, cpu_s=10.3)] * 20
    assert looked(*before, *spell[:1]).working == 0
    assert looked(*before, *spell).working == 0


def test_a_request_that_failed_on_its_way_is_given_up_after_a_while() -> None:
    """It began and never ends; the service must not stay awake for it for ever."""
    stuck = kserve(begun=8, predicted=7)
    times = int(LOST_AFTER_S / 10)
    assert looked(*[stuck] * times, every_s=10.0).working == 1
    assert looked(*[stuck] * (times + 2), every_s=10.0).working == 0


def test_after_one_was_given_up_the_next_counts() -> None:
    """What was lost is taken off, and no more than that."""
    still = Stillness.first(Moved(3, 10, 1.0), at_s=0.0).after(Moved(3, 10, 1.1), at_s=LOST_AFTER_S)
    assert still.working == 0
    assert still.after(Moved(4, 10, 1.1), at_s=LOST_AFTER_S + 1).working == 1
    assert still.after(Moved(3, 11, 1.1), at_s=LOST_AFTER_S + 1).working == 0


@pytest.mark.parametrize(
    "moves",
    [
        pytest.param(Moved(2, 11, 1.0), id="another request ended"),
        pytest.param(Moved(3, 10, 1.0), id="another one began"),
        pytest.param(Moved(2, 10, 1.0 + 60 * 2 * QUIET_CORES), id="it computes"),
    ],
)
def test_nothing_is_given_up_while_anything_moves(moves: Moved) -> None:
    """A long request beside others is a request."""
    still = Stillness.first(Moved(2, 10, 1.0), at_s=0.0).after(Moved(2, 10, 1.0), at_s=1.0)
    still = still.after(moves, at_s=61.0)
    later = still.after(moves, at_s=LOST_AFTER_S + 10)
    assert later.working is not None
    assert later.working >= 2


@pytest.mark.parametrize(
    "anew",
    [Moved(1, 10, 0.5), Moved(1, 0, 2.0), Moved(1, 10, 2.0)],
    ids=["less work", "fewer requests", "fewer open ones than were lost"],
)
def test_a_process_that_began_anew_has_lost_nothing(anew: Moved) -> None:
    """Else one of its own would be taken for one of those."""
    lost = Stillness.first(Moved(2, 10, 1.0), at_s=0.0).after(Moved(2, 10, 1.0), at_s=LOST_AFTER_S)
    again = lost.after(anew, at_s=LOST_AFTER_S + 1)
    assert again.working is None
    assert again.after(anew, at_s=LOST_AFTER_S + 2).working == 1


@pytest.mark.parametrize(
    ("page", "why"),
    [
        ('request_predict_seconds_count{model_name="m"} 7\nprocess_cpu_seconds_total 1\n',
         "request_preprocess_seconds_count is not exposed"),
        (kserve(7, 7).replace("process_cpu", "no_cpu"),
         "process_cpu_seconds_total is not exposed"),
        (kserve(7, 7).replace("total 1.0", "total NaN"), "process_cpu_seconds_total is nan"),
    ],
    ids=["an old server", "without its CPU", "nonsense"],
)  # fmt: skip
def test_what_is_not_told_proves_nothing(page: str, why: str) -> None:
    """Rule D1: absence is not zero."""
    assert looked(page, page).working == NoReading(why)


def test_its_level_is_no_measure_of_load() -> None:
    """Between two requests of a server that answers one after the other it is always 0."""
    busy = [kserve(n, n - 1) for n in range(1, 5)]
    page = looked(*busy).page
    assert not {IN, Measure.REQUEST_SECONDS_TOTAL} & page.values.keys()


@pytest.mark.parametrize(
    ("page", "processes", "why"),
    [
        (kserve(7, 7), 2, "leave --workers at 1"),
        (kserve(7, 7), 1, None),
        ("vllm:num_requests_running 1\n", 2, None),
    ],
    ids=["several", "one", "several that tell of one another"],
)
def test_one_process_of_several_speaks_for_itself_alone(
    page: str, processes: int, why: str | None
) -> None:
    """A kernel hands connections to the same one again and again, however busy the others are."""
    at = At("10.0.0.1", 8080, "/metrics", processes)
    read = page_of(at, Answer(200, page.encode(), whole=True))
    if why is None:
        assert isinstance(read, Page), read
    else:
        assert isinstance(read, NoReading)
        assert why in read.why
