# SPDX-License-Identifier: Apache-2.0
"""Packing lists of pods: the protocol's rules, the report, and what a user types."""

import json
import os
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from random import Random
from typing import Any

import pytest

from autoscaler.cli import main
from autoscaler.errors import GiveUp
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.gpus import Card, NodeGpus
from scheduler_extender.core.typical import FIRST_NEWS_PODS
from simulations.packing.lists import read_nodes, read_pods
from simulations.packing.protocol import RANKINGS, Packing, run, workload
from simulations.packing.through import extender_for

NODES = "sn,cpu_milli,memory_mib,gpu,model\n" + "".join(
    f"n{i},96000,262144,{cards},{model}\n"
    for i, (cards, model) in enumerate([(8, "G2")] * 6 + [(2, "T4")] * 8 + [(0, "")] * 2)
)
PODS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n" + "".join(
    f"p{i},{cpu},4096,{cards},{milli},{spec}\n"
    for i, (cpu, cards, milli, spec) in enumerate(
        [(8000, 1, 1000, "")] * 6
        + [(4000, 1, 470, "")] * 5
        + [(3000, 1, 810, "T4|G2")] * 3
        + [(16000, 0, 0, "")] * 2
        + [(2000, 1, 230, "T4")] * 2
        + [(24000, 4, 1000, "")]
    )
)
OPENB = Path(
    os.environ.get("TIDEGATE_OPENB") or Path(__file__).parents[4] / "shared" / "data" / "openb"
)

Typed = Callable[..., tuple[int | str | None, str, str]]


@pytest.fixture
def lists(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "nodes.csv").write_text(NODES)
    (tmp_path / "pods.csv").write_text(PODS)
    return tmp_path / "nodes.csv", tmp_path / "pods.csv"


@pytest.fixture
def typed(
    lists: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Typed:
    """`tidegate simulate packing` of the lists: the exit code, what is on stdout and on stderr."""

    def typing(*words: str | Path) -> tuple[int | str | None, str, str]:
        nodes, pods = lists
        line = ("tidegate", "simulate", "packing", "--nodes", nodes, "--pods", pods, *words)
        monkeypatch.setattr(sys, "argv", list(map(str, line)))
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return typing


def timeless(report: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(report)
    del told["seconds"]
    return told


def test_the_same_seeds_give_the_same_report_however_many_run_at_once(typed: Typed) -> None:
    """All but the seconds it took."""
    code, alone, _ = typed("--seeds", "3", "--json")
    assert code == 0
    together = typed("--seeds", "3", "--json", "--jobs", "3")[1]
    assert json.dumps(timeless(alone)) == json.dumps(timeless(together))
    other = typed("--seeds", "3", "--json", "--first-seed", "7")[1]
    assert timeless(other)["curve"] != timeless(alone)["curve"]


def test_a_report_tells_spread_curve_and_seconds(typed: Typed) -> None:
    report = json.loads(typed("--seeds", "2", "--json", "--policy", "fgd")[1])
    for key in ("unallocated_gpu_percent", "fragments_gpu_percent"):
        told = report[key]
        assert told["min"] <= told["mean"] <= told["max"]
        assert len(told["per_seed"]) == 2
        assert 0 <= told["mean"] <= 100
    assert len(report["seconds"]["per_seed"]) == 2
    at = [point["arrived_percent"] for point in report["curve"]]
    assert at == sorted(at)
    assert at[-1] > 120
    assert report["policy"] == "fgd"


def test_a_plot_is_a_picture_of_both_curves(typed: Typed, tmp_path: Path) -> None:
    file = tmp_path / "run.svg"
    code, shown, _ = typed("--seeds", "2", "--plot", file)
    assert code == 0
    assert "unallocated" in shown
    lines = ET.parse(file).getroot().findall("{*}polyline")  # noqa: S314  our own file
    assert len(lines) == 2 * (2 + 1)


@pytest.mark.parametrize("policy", list(RANKINGS))
def test_every_policy_allocates_only_what_there_is(policy: str, lists: tuple[Path, Path]) -> None:
    """And the more was asked for, the more is allocated."""
    nodes, pods = read_nodes(lists[0]), read_pods(lists[1])
    done = run(nodes, pods, policy=policy, seed=1)
    allocated = [moment.allocated_percent for moment in done.curve]
    assert allocated == sorted(allocated)
    assert 60 < allocated[-1] <= 100
    for moment in done.curve:
        assert 0 <= moment.fragments_percent <= 100
        assert moment.allocated_percent <= moment.arrived_percent + 1


def test_nobody_is_placed_on_a_model_that_he_may_not_have(lists: tuple[Path, Path]) -> None:
    packing = Packing(read_nodes(lists[0]), read_pods(lists[1]), policy="tidegate", seed=1)
    picky = Demand(whole=True, milli=1000, models=("T4",))
    placed = 0
    while packing.place(picky, packing.choose):
        placed += 1
    assert placed == 16


def test_a_workload_asks_for_thirteen_tenths_of_the_gpus() -> None:
    """A short list is drawn from, a long one is thinned out; the pods of a fitting one all come."""
    one = Demand(whole=True, milli=1000, cpu_milli=1)
    short = workload([one] * 10, capacity_milli=100_000, chance=Random(1))
    long = workload([one] * 500, capacity_milli=100_000, chance=Random(1))
    assert len(short) == len(long) == 130


def test_a_policy_that_learns_sees_no_pod_before_it_comes() -> None:
    """Two lists alike at first are packed alike at first, whatever follows."""
    nodes = tuple(
        NodeGpus(f"n{i}", (Card(f"n{i}/0", 1, slots=1000),), cpu_milli=9000) for i in range(200)
    )
    first = [Demand(milli=300 + 10 * (i % 7)) for i in range(80)]
    rows = []
    for later in (Demand(milli=700), Demand(milli=50)):
        packing = Packing(nodes, [*first, later], policy="tidegate", seed=1)
        assert all(packing.place(pod, packing.choose) for pod in first)
        rows.append(packing.fleet.milli_free.tolist())
    assert rows[0] == rows[1]


def test_over_http_every_pod_gets_the_cards_that_it_gets_in_process(
    lists: tuple[Path, Path],
) -> None:
    """The same cards of the same nodes; some pods want no GPU, and some fit nowhere."""
    nodes, pods = read_nodes(lists[0]), read_pods(lists[1])
    inside, beside = (Packing(nodes, pods, policy="tidegate", seed=5) for _ in range(2))
    places = []
    with extender_for(beside) as asking:
        for pod in inside.arrivals:
            wanted, got = inside.choose(pod), asking(pod)
            assert (got and (got.node, got.uuids)) == (wanted and (wanted.node, wanted.uuids))
            for packing, grant in ((inside, wanted), (beside, got)):
                if grant is not None:
                    packing.fleet.take(grant)
            places.append(got)
    assert len(places) > FIRST_NEWS_PODS
    assert None in places
    assert any(place is not None and not place.uuids for place in places)


def test_an_extender_that_dies_ends_the_run_and_says_so(lists: tuple[Path, Path]) -> None:
    packing = Packing(read_nodes(lists[0]), read_pods(lists[1]), policy="tidegate", seed=5)
    with extender_for(packing) as asking:
        assert asking(packing.arrivals[0]) is not None
        (child,) = active_children()
        child.kill()
        child.join()
        with pytest.raises(GiveUp, match="filter: the extender's process did not answer"):
            asking(packing.arrivals[1])


def test_a_report_says_that_it_was_made_over_http(typed: Typed) -> None:
    code, shown, _ = typed("--seeds", "1", "--through-http", "--json")
    assert code == 0
    over_http, inside = json.loads(shown), json.loads(typed("--seeds", "1", "--json")[1])
    assert (over_http.pop("through"), inside.pop("through")) == ("http", "core")
    assert over_http["seconds"].pop("calls_per_s")[0] > 0
    (calls,) = over_http.pop("http_calls")
    assert calls >= 2 * over_http["placed_pods"][0]
    assert over_http | {"seconds": 0} == inside | {"seconds": 0}


def test_what_cannot_be_asked_of_the_extender_is_said_before_anything_runs(
    typed: Typed, lists: tuple[Path, Path]
) -> None:
    code, _, err = typed("--through-http", "--policy", "fgd")
    assert (code, "permitted: tidegate" in err) == (2, True)
    lists[1].write_text("cpu_milli,memory_mib,num_gpu,gpu_milli\n1,1,1,125\n")
    code, _, err = typed("--through-http")
    assert (code, "gpu_milli 125 is not permitted" in err) == (2, True)


@pytest.mark.parametrize(
    ("which", "line", "words"),
    [
        ("nodes", "x,many,1,1,T4", "line 2, column cpu_milli: 'many' is not permitted"),
        ("nodes", ",1,1,1,T4", "line 2, column sn: '' is not permitted"),
        ("nodes", "x,1,1,100,T4", "line 2, column gpu: '100' is not permitted"),
        ("pods", "p,1,1,1,1001,", "line 2, column gpu_milli: '1001' is not permitted"),
        ("pods", "p,1,1,1,0,", "line 2, column gpu_milli: 0 is not permitted"),
        ("pods", "p,1,1", "line 2, column num_gpu: '' is not permitted"),
        ("pods", "p,1,-1,1,500,", "line 2, column memory_mib: '-1' is not permitted"),
        ("pods", "p,1,1,0,0,", "has no pod that asks for a GPU"),
    ],
)
def test_a_wrong_line_is_named_with_its_column_and_what_is_permitted(
    typed: Typed, lists: tuple[Path, Path], which: str, line: str, words: str
) -> None:
    file = lists[0 if which == "nodes" else 1]
    file.write_text(file.read_text().splitlines()[0] + "\n" + line + "\n")
    code, out, err = typed("--seeds", "1")
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_missing_column_or_file_is_said_in_one_line(
    typed: Typed, lists: tuple[Path, Path]
) -> None:
    lists[1].write_text("cpu_milli,memory_mib,num_gpu\n")
    code, _, err = typed()
    assert (code, "line 1 has no column gpu_milli" in err) == (2, True)
    lists[1].unlink()
    code, _, err = typed()
    assert (code, "No such file" in err) == (2, True)


def test_a_policy_that_is_not_there_is_answered_with_those_that_are(typed: Typed) -> None:
    code, _, err = typed("--policy", "best")
    assert code == 2
    assert all(policy in err for policy in RANKINGS)


@pytest.mark.slow
@pytest.mark.skipif(
    not OPENB.exists(), reason=f"{OPENB} is not there: lists lie beside the project"
)
@pytest.mark.parametrize(("policy", "least", "most"), [("fgd", 4.3, 5.2), ("tidegate", 3.1, 4.6)])
def test_on_the_published_list_we_pack_better_than_fragmentation_gradient_descent(
    policy: str, least: float, most: float
) -> None:
    """One seed; the published mean over ten is 4.77 % with a deviation of 0.11."""
    nodes = read_nodes(OPENB / "openb_node_list_gpu_node.csv")
    pods = read_pods(OPENB / "openb_pod_list_default.csv")
    left = 100 - run(nodes, pods, policy=policy, seed=42).at(100).allocated_percent
    assert least < left < most
