# SPDX-License-Identifier: Apache-2.0
"""What the command line refuses, in one line, and how a worker ends that cannot load its model."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serving import catalog
from serving.errors import BadInput
from serving.settings import DEFAULTS, Settings, as_seconds, as_size, seconds, size_bytes
from tests.serving.processes import ROOT, ended, environment, events, ready_worker


def _refused(*arguments: str) -> str:
    """The one line of a command line that cannot be used."""
    result = ended(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("tidegate worker: ")
    return line


def _problem(text: str, *, unsafe_pickle: bool = False) -> str:
    with pytest.raises(BadInput) as caught:
        catalog.model_file(text, unsafe_pickle=unsafe_pickle)
    (problem,) = caught.value.problems
    return problem


def test_a_pickle_is_refused_in_one_line_that_names_the_file_and_the_remedy(models: Path) -> None:
    line = _refused("--model", f"iris={models / 'iris.joblib'}")
    assert "iris.joblib is a pickle" in line
    assert "skops.io.dump" in line
    assert "--unsafe-pickle" in line


def test_a_command_line_without_a_model_says_how_to_name_one() -> None:
    assert "--model NAME=PATH" in _refused()


def test_a_port_that_is_taken_is_named_before_anything_is_loaded(models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = _refused("--model", f"a={models / 'add.onnx'}", "--port", str(port))
    assert f"--port {port}: cannot listen there" in line


def test_every_problem_with_the_models_is_reported_at_once(models: Path) -> None:
    result = ended("--model", "x", "--model", f"y={models / 'none.onnx'}")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 2


def test_the_help_teaches_protocols_signals_and_exit_status() -> None:
    result = ended("--help")
    assert result.returncode == 0
    for word in ("NAME=PATH", "--unsafe-pickle", "/v2/health/ready", "SIGTERM", "Exit status"):
        assert word in result.stdout


def test_untrusted_types_are_named_with_the_flag_that_trusts_them_and_the_status_is_1(
    models: Path,
) -> None:
    result = ended("--model", f"forest={models / 'forest.skops'}", "--port", "0")
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith("tidegate worker: model 'forest' does not load")
    assert line.endswith("add --trust sklearn.tree._tree.Tree")
    assert events(result.stderr) == ["listening"]


def test_a_trusted_type_and_an_unsafe_pickle_load_when_asked_for(
    models: Path, tmp_path: Path
) -> None:
    flags = (
        *("--model", f"forest={models / 'forest.skops'}", "--trust", "sklearn.tree._tree.Tree"),
        *("--model", f"iris={models / 'iris.joblib'}", "--unsafe-pickle"),
    )
    with ready_worker(tmp_path / "stderr", *flags) as worker:
        for name in ("forest", "iris"):
            response = worker.http.post(
                f"/v1/models/{name}:predict", json={"instances": [[5.1, 3.5, 1.4, 0.2]]}
            )
            assert response.json() == {"predictions": [0]}


@pytest.mark.parametrize("suffix", [".onnx", ".skops", ".pkl"])
def test_a_broken_file_is_named_with_the_reason_and_the_status_is_1(
    tmp_path: Path, suffix: str
) -> None:
    broken = tmp_path / f"model{suffix}"
    broken.write_bytes(b"no model")
    result = ended("--model", f"m={broken}", "--port", "0", "--unsafe-pickle")
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith("tidegate worker: model 'm' does not load")
    assert str(broken) in line
    assert "Traceback" not in result.stderr


def test_reading_the_command_line_imports_nothing_heavy() -> None:
    heavy = ("numpy", "onnxruntime", "sklearn", "skops", "joblib", "uvicorn", "prometheus_client")
    code = f"import sys, serving.cli; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code], env=environment(), cwd=ROOT, capture_output=True, text=True
    )
    assert result.stdout == "[]\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("iris", "'iris' is not NAME=PATH"),
        ("iris=", "is not NAME=PATH"),
        ("=/x.onnx", "'' is no model name"),
        ("a b=/x.onnx", "'a b' is no model name"),
        ("stats=/x.onnx", "not 'stats'"),
        ("m=/nowhere/x.onnx", "there is no file or directory /nowhere/x.onnx"),
    ],
)
def test_a_model_that_is_not_name_and_path_is_refused(text: str, says: str) -> None:
    assert says in _problem(text)


def test_an_unknown_file_type_names_the_permitted_ones(tmp_path: Path) -> None:
    (tmp_path / "model.h5").touch()
    problem = _problem(f"m={tmp_path / 'model.h5'}")
    assert "permitted are .onnx .skops .joblib .pkl" in problem


def test_a_directory_stands_for_the_one_model_file_in_it(tmp_path: Path) -> None:
    assert "holds no model file" in _problem(f"m={tmp_path}")
    (tmp_path / "README").touch()
    (tmp_path / "model.onnx").touch()
    assert catalog.model_file(f"m={tmp_path}", unsafe_pickle=False).path.name == "model.onnx"
    (tmp_path / "model.skops").touch()
    assert "holds model.onnx, model.skops" in _problem(f"m={tmp_path}")


def test_a_missing_package_names_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").touch()
    monkeypatch.setattr(catalog, "find_spec", lambda _: None)
    problem = _problem(f"m={tmp_path / 'm.onnx'}")
    assert problem.endswith("need onnxruntime, not installed; pip install 'tidegate[worker]'")


def test_settings_report_all_problems_with_name_value_and_range(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    model = catalog.model_file(f"m={tmp_path / 'm.onnx'}", unsafe_pickle=False)
    assert Settings(models=(model,)).validate() == []
    assert Settings(models=(model, model), port=70000, threads=0).validate() == [
        "--port: 70000 is out of range, allowed is 0 to 65535",
        "--threads: 0 is out of range, allowed is 1 to 1024",
        "--model: the name 'm' is given twice; each model needs its own",
    ]
    assert "nothing to serve" in DEFAULTS.validate()[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [("2ms", 0.002), ("30s", 30.0), ("1.5m", 90.0), ("100us", 0.0001), ("0", 0.0)],
)
def test_durations_carry_their_unit(text: str, value: float) -> None:
    assert seconds("--x", text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "2", "-2ms", "ms", "2 hours", "nan"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is no duration; write one such as"):
        seconds("--x", text)


@pytest.mark.parametrize(("text", "value"), [("64Mi", 2**26), ("10", 10), ("1Ki", 1024)])
def test_sizes_carry_their_unit(text: str, value: int) -> None:
    assert size_bytes("--x", text) == value


@pytest.mark.parametrize("text", ["", "1.5Mi", "-1", "1MB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is no size"):
        size_bytes("--x", text)


def test_the_defaults_that_help_shows_are_read_back_as_the_defaults() -> None:
    """Help prints durations and sizes as one would type them; typing them changes nothing."""
    for value_s in (DEFAULTS.max_queue_delay_s, DEFAULTS.drain_grace_s):
        assert seconds("--x", as_seconds(value_s)) == value_s
    assert size_bytes("--max-body", as_size(DEFAULTS.max_body_bytes)) == DEFAULTS.max_body_bytes
