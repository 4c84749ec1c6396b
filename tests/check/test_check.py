# SPDX-License-Identifier: Apache-2.0
"""`tidegate check` says everything at once, with its line, and ends soon whatever it reads."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from autoscaler.app.check import cli, report
from autoscaler.manifests.documents import LARGEST_BYTES
from autoscaler.manifests.review import Severity, review

HERE = Path(__file__).parent
CASES = sorted((HERE / "cases").glob("*.yaml"))
DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: llm
  annotations:
    tidegate.dev/enabled: "true"
"""


def told(text: str | bytes, *, name: str = "m.yaml") -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    return list(report(review([(name, data)])))


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_the_report_is_the_one_written_beside_it(
    case: Path, request: pytest.FixtureRequest
) -> None:
    """Golden reports; every line names file, line, place, what is permitted."""
    lines = "\n".join(told(case.read_bytes(), name=case.name)) + "\n"
    golden = case.with_suffix(".txt")
    if request.config.getoption("--rewrite"):
        golden.write_text(lines)
    assert lines == golden.read_text()


def test_every_line_of_a_golden_report_is_where_it_says() -> None:
    """The line named shows the last step of the place, where that is there."""
    for case in CASES:
        text = case.read_text().splitlines()
        for remark in review([(case.name, case.read_bytes())]).of(Severity.PROBLEM):
            keys = [str(step) for step in remark.problem.place if isinstance(step, str)]
            if keys and keys[-1] != "serving.kserve.io/autoscalerClass":  # which is missing there
                assert keys[-1] in text[remark.line - 1], (case.name, str(remark.problem))


def test_exit_codes_tell_problems_from_warnings(tmp_path: Path) -> None:
    """0: nothing wrong, warnings included; 2: a problem, or with --strict a warning."""
    manifest = tmp_path / "m.yaml"
    manifest.write_text(DEPLOYMENT)
    assert run(manifest).exit_code == 0
    manifest.write_text(DEPLOYMENT + '    autoscaling.knative.dev/metric: "cpu"\n')
    assert run(manifest).exit_code == 0
    assert run(manifest, "--strict").exit_code == 2
    manifest.write_text(DEPLOYMENT + "    tidegate.dev/max-replicas: many\n")
    assert run(manifest).exit_code == 2


def test_a_folder_is_read_with_all_below_it(tmp_path: Path) -> None:
    """Manifests by their endings, hidden ones not; in one order every time."""
    for name in ("b/two.yml", "a.yaml", "c.json", "notes.txt", ".git/x.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(DEPLOYMENT.replace("llm", name[0]))
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    result = run(tmp_path)
    assert (result.exit_code, result.stdout) == (0, "3 objects, 3 scaled, 0 problems\n")


def test_standard_input_is_a_file_too() -> None:
    """What a pipe from helm or kubectl needs."""
    result = run("-", stdin=DEPLOYMENT + "    tidegate.dev/max-replicas: many\n")
    assert result.exit_code == 2
    assert result.stdout.startswith("stdin:7: metadata.annotations[tidegate.dev/max-replicas]: ")


def test_what_cannot_be_read_is_a_problem_of_that_file_alone(tmp_path: Path) -> None:
    """The others are judged all the same."""
    good, empty = tmp_path / "m.yaml", tmp_path / "empty"
    good.write_text(DEPLOYMENT)
    empty.mkdir()
    result = run(tmp_path / "nowhere.yaml", empty, good)
    assert result.exit_code == 2
    assert "nowhere.yaml: cannot be read: No such file" in result.stdout
    assert "no manifest in it (.yaml, .yml, .json)" in result.stdout
    assert "1 object, 1 scaled, 2 problems" in result.stdout


def test_json_has_what_the_lines_have_and_the_policy_in_force(tmp_path: Path) -> None:
    """For other programs; the same exit code."""
    manifest = tmp_path / "m.yaml"
    schedule = '    tidegate.dev/schedule: "Sat 10:00-14:00 UTC max=3"\n'
    broken = DEPLOYMENT.replace("llm", "b") + '    tidegate.dev/max-replica: "1"\n'
    manifest.write_text(DEPLOYMENT + schedule + "---\n" + broken)
    result = run(manifest, "--json")
    assert result.exit_code == 2
    found = json.loads(result.stdout)
    (problem,) = found["problems"]
    assert (problem["line"], problem["object"]) == (15, "Deployment default/b")
    assert problem["place"] == "metadata.annotations[tidegate.dev/max-replica]"
    (scaled,) = found["scaled"]
    assert scaled["target"]["plural"] == "deployments"
    assert scaled["policy"]["schedule"][0]["max_replicas"] == 3
    assert (found["objects"], found["warnings"]) == (2, [])


def test_a_json_manifest_is_read_with_its_lines() -> None:
    """Tabs and escaped letters are JSON's, and no reason to refuse."""
    document = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "\U0001f600", "annotations": {"tidegate.dev/enabled": "yes"}},
    }
    (line, _) = told(json.dumps(document, indent="\t"))
    assert line.startswith("m.yaml:7: metadata.annotations[tidegate.dev/enabled]: 'yes' is not")


def test_windows_line_ends_and_a_byte_order_mark_change_nothing() -> None:
    """Lines are counted as an editor counts them."""
    text = DEPLOYMENT + "    tidegate.dev/max-replicas: many\n"
    assert told(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()) == told(text)


def test_anchors_and_merges_are_followed() -> None:
    """Where a value comes from another place, that place is named."""
    text = (
        "x: &common\n  tidegate.dev/enabled: 'true'\n  tidegate.dev/max-replicas: many\n"
        "apiVersion: apps/v1\nkind: Deployment\n"
        "metadata: {name: llm, annotations: {<<: *common, tidegate.dev/hold-limit: '1'}}\n"
    )
    (line, _) = told(text)
    assert line.startswith("m.yaml:3: metadata.annotations[tidegate.dev/max-replicas]: 'many'")


def _laughs(depth: int) -> str:
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, depth)]
    return (
        "\n".join(lines)
        + f"\nkind: Deployment\napiVersion: v1\nmetadata: {{annotations: *a{depth - 1}}}\n"
    )


def _merges(depth: int) -> str:
    keys = ", ".join(f"k{n}: {n}" for n in range(50))
    lines = [f"a0: &a0 {{{keys}}}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, depth)]
    return "\n".join(lines) + f"\nkind: Deployment\napiVersion: v1\nmetadata: *a{depth - 1}\n"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (_laughs(40), "wants a table of keys"),
        (_merges(40), "1 object, 0 scaled"),
        ("[" * 200_000, "nested far too deep"),
        ("- " * 200_000, "nested far too deep"),
        ("{a: " * 300 + "1" + "}" * 300, "deeper than 100 levels"),
        ("metadata: &m {annotations: *m}\nkind: Deployment\napiVersion: apps/v1\n", "to itself"),
        ("kind: List\napiVersion: v1\nitems: &i [{kind: List, items: *i}]", "to itself"),
        ("a: &a {<<: *a, kind: Pod}\nkind: Pod\napiVersion: v1", "refers to itself"),
        (b"\xff\xfe\x00", "no UTF-8 text"),
        (b"a: \x00", "not YAML"),
        ("kind: Pod\napiVersion: v1\nn: " + "9" * 10_000, "1 object"),
        (b"#" * (LARGEST_BYTES + 1), "at most 16 are read"),
        ("", "0 objects"),
        ("a: *nobody", "undefined alias"),
    ],
    ids=["laughs", "merges", "brackets", "dashes", "deep", "cycle", "list in itself",
         "merge of itself", "binary", "zero byte", "digits", "huge", "empty", "no anchor"],
)  # fmt: skip
def test_no_text_makes_it_hang_or_fall(text: str | bytes, words: str) -> None:
    """Each ends in a line that says what is wrong."""
    assert words in "\n".join(told(text))


@given(st.text(max_size=80) | st.binary(max_size=80).map(lambda b: b.decode("latin-1")))
def test_any_text_ends_in_a_report_of_single_lines(text: str) -> None:
    """Names and values of a file reach the terminal as one printable line each."""
    for line in told(DEPLOYMENT + f"    tidegate.dev/x: {json.dumps(text)}\n---\n" + text):
        assert line.isprintable()


@pytest.mark.parametrize("odd", ["a\\nb", "\\u001b[31m", "\\u202e"])
def test_a_file_cannot_write_to_the_terminal(odd: str) -> None:
    """Escapes in a key or a value are shown, not obeyed."""
    for line in told(DEPLOYMENT + f'    "tidegate.dev/{odd}": "{odd}"\n'):
        assert line.isprintable()
