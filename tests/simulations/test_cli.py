# SPDX-License-Identifier: Apache-2.0
"""`tidegate simulate` as a user types it, each time in a process of its own."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from autoscaler.cli import main
from tests.simulations.runs import recorded

AZURE = "traces/azure-llm-2023/AzureLLMInferenceTrace_conv.csv"


def tidegate(*words: str | Path, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  our own command
        [sys.executable, "-m", "autoscaler.cli", "simulate", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )


def good(*words: str | Path, hash_seed: str = "0") -> str:
    done = tidegate(*words, hash_seed=hash_seed)
    assert done.returncode == 0, done.stderr
    return done.stdout


Here = Callable[..., tuple[int | str | None, str, str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Here]:
    """`tidegate simulate` in this process: the exit code, what is on stdout, what on stderr."""

    def run(*words: str | Path) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["tidegate", "simulate", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    before = structlog.get_config()
    yield run
    structlog.configure(**before)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "made.jsonl"
    words = ("--duration", "10m", "--rate", "2", "--burst-every", "2m", "--idle-every", "4m")
    good("synthesize", "--out", path, *words, "--seed", "3")
    return path


def replayed(trace: Path, *words: str | Path, hash_seed: str = "0") -> dict[str, Any]:
    out = good(
        "replay", "--trace", trace, "--format", "jsonl", "--json", *words, hash_seed=hash_seed
    )
    report: dict[str, Any] = json.loads(out)
    return report


def test_the_same_arguments_give_the_same_bytes_in_every_process(trace: Path) -> None:
    words = (
        *("replay", "--trace", trace, "--format", "jsonl", "--json", "--target", "concurrency=2"),
        *("--max-replicas", "8", "--cold-start", "lognormal(20s,0.7)", "--rate-scale", "1.5"),
        *("--scale-to-zero-after", "30s", "--slo", "10s", "--seed", "7"),
    )
    first = good(*words, hash_seed="1")
    assert first == good(*words, hash_seed="2")
    assert json.loads(first)["seed"] == 7


def test_a_report_says_what_was_replayed_and_conserves_requests(trace: Path) -> None:
    report = replayed(trace, "--target", "concurrency=2", "--max-replicas", "8")
    requests = report["requests"]
    assert requests["sent"] == report["trace"]["requests"] > 100
    assert requests["lost"] == 0
    assert requests["sent"] == requests["answered"] + requests["refused"] + requests["expired"]
    assert len(report["trace"]["sha256"]) == 64
    assert report["policy"]["targets"] == "concurrency=2"
    assert report["policy"]["scale-to-zero-after"] == "auto"
    assert report["oracle"]["replica_seconds_per_bound"] > 1


def test_the_table_and_the_files_beside_it(trace: Path, tmp_path: Path) -> None:
    drawn, decided = tmp_path / "run.svg", tmp_path / "decisions.jsonl"
    done = tidegate(
        "replay", "--trace", trace, "--format", "jsonl", "--max-replicas", "4", "--slo", "5s",
        "--plot", drawn, "--decisions", decided,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""
    assert "attainment" in done.stdout
    assert "x the fluid bound" in done.stdout
    ET.parse(drawn)  # noqa: S314  our own text
    lines = [json.loads(line) for line in decided.read_text(encoding="utf-8").splitlines()]
    assert any(line["replicas_to"] > line["replicas_from"] for line in lines)
    assert all(line["because"] for line in lines)


def test_a_limit_and_a_window_cut_the_trace(trace: Path) -> None:
    report = replayed(trace, "--from", "1m", "--until", "9m", "--limit", "20", "--speedup", "2")
    assert report["requests"]["sent"] == 20
    assert report["trace"]["shape"]["from_s"] == 60.0


def test_traces_lists_formats_and_describes_a_file(trace: Path, here: Here) -> None:
    _, formats, _ = here("traces", "--json")
    assert set(json.loads(formats)["formats"]) == {"azure", "jsonl", "mooncake"}
    assert "azure" in here("traces")[1]
    _, told, _ = here("traces", trace, "--format", "jsonl", "--json")
    described = json.loads(told)
    assert described["requests"] > 100
    assert described["mean_rps"] > 0
    assert "prompt tokens" in here("traces", trace, "--format", "jsonl")[1]


REPLAY = ("replay", "--trace", "TRACE", "--format", "jsonl")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("replay", "--trace", "absent.csv", "--format", "azure"), "No such file or directory"),
        (("replay", "--trace", "TRACE", "--format", "azure"), "line 1: the header is"),
        (
            ("replay", "--trace", "TRACE", "--format", "parquet"),
            "permitted: azure, jsonl, mooncake",
        ),
        (("replay", "--trace", "TRACE"), "Missing option '--format'"),
        ((*REPLAY, "--target", "concurency=4"), "did you mean 'concurrency'?"),
        ((*REPLAY, "--min-replicas", "-1"), "--min-replicas: '-1' is not permitted"),
        ((*REPLAY, "--min-replicas", "4"), "min-replicas: 4 is above max-replicas 1"),
        ((*REPLAY, "--policy", "magic"), "--policy: 'magic' is not permitted"),
        ((*REPLAY, "--slots", "0"), "'--slots'"),
        ((*REPLAY, "--limit", "-3"), "'--limit'"),
        ((*REPLAY, "--cold-start", "-3s"), "--cold-start: '-3s' is not permitted"),
        ((*REPLAY, "--service-time", "fast"), "--service-time: 'fast'"),
        ((*REPLAY, "--tick", "0s"), "--tick: 0 is not permitted"),
        ((*REPLAY, "--tick", "1e9s"), "--tick: '1e9s' is not permitted"),
        ((*REPLAY, "--rate-scale", "nan"), "--rate-scale: nan is not permitted"),
        ((*REPLAY, "--speedup", "-1"), "--speedup: -1 is not permitted"),
        ((*REPLAY, "--from", "9h"), "no request from 32400 s until the end"),
        ((*REPLAY, "--plot", "run.png"), "permitted: a file name ending in .svg"),
        ((*REPLAY, "--decisions", "absent/d.jsonl"), "name a file that can be written"),
        (("traces", "TRACE"), "say which format"),
        (("synthesize", "--out", "x.jsonl", "--rate", "0"), "--rate: 0 is not permitted"),
        (("synthesize", "--out", "absent/x.jsonl"), "name a file that can be written"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    trace: Path, words: tuple[str, ...], said: str, here: Here
) -> None:
    code, out, err = here(*(str(trace) if word == "TRACE" else word for word in words))
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_clock_times_for_seconds_are_found_before_the_run_hangs(tmp_path: Path, here: Here) -> None:
    path = tmp_path / "epoch.jsonl"
    path.write_text('{"at_s": 1700000000, "prompt_tokens": 1, "output_tokens": 1}\n')
    code, _, err = here("replay", "--trace", path, "--format", "jsonl")
    assert code == 2
    assert "cut the trace with --from and --until" in err


def test_the_azure_hour_is_answered_whole() -> None:
    out = good(
        "replay", "--trace", recorded(AZURE), "--format", "azure", "--policy", "target",
        "--target", "concurrency=4", "--max-replicas", "10", "--slo", "5s", "--json",
    )  # fmt: skip
    report = json.loads(out)
    assert report["requests"]["answered"] == report["requests"]["sent"] == 19_366
    assert report["attainment"]["ratio"] > 0.9
