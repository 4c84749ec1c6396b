# SPDX-License-Identifier: Apache-2.0
"""Trace readers on small samples by hand, on broken lines, and on the real files where they are."""

import io
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from autoscaler.errors import BadInput
from simulations.traces import azure, jsonl, mooncake
from simulations.traces.arrivals import Arrival, Reader
from simulations.traces.describe import describe
from simulations.traces.formats import FORMATS, read_trace
from tests.simulations.runs import recorded

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens\r
2023-11-16 23:59:59.9999999,374,44\r
2023-11-17 00:00:00.0000001,396,109\r
2023-11-17 00:00:01.5,879,55\r
"""


def read(reader: Reader, text: str, *, seed: int = 0) -> Sequence[Arrival]:
    return reader(io.StringIO(text, newline=""), "sample", Random(seed))


def problem(reader: Reader, text: str) -> str:
    with pytest.raises(BadInput) as caught:
        read(reader, text)
    return str(caught.value)


def test_azure_stamps_keep_their_100_ns_digits_over_midnight() -> None:
    assert read(azure.read, AZURE) == [
        Arrival(0.0, 374, 44),
        Arrival(2e-7, 396, 109),
        Arrival(1.5000001, 879, 55),
    ]


def test_azure_stamps_of_later_releases_carry_an_offset() -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,2162,5\n"
        "2024-05-10 00:00:01+00:00,10,6\n"
    )
    assert [arrival.at_s for arrival in read(azure.read, text)] == [0.0, 0.99007]


def test_azure_rows_out_of_order_are_put_in_order() -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:00:05.0,2,2\n2023-11-16 18:00:00.0,1,1\n"
    )
    assert read(azure.read, text) == [Arrival(0.0, 1, 1), Arrival(5.0, 2, 2)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: the header is ''"),
        ("at,in,out\n", "line 1: the header is 'at,in,out'"),
        (AZURE + "2023-11-17 00:00:02.0,1\r\n", "line 5: 2 columns"),
        (AZURE + "2023-11-17 00:00:02.0,1,x\r\n", "line 5: GeneratedTokens is 'x'"),
        (AZURE + "2023-11-17 00:00:02.0,-1,3\r\n", "line 5: ContextTokens is -1"),
        (AZURE + "17 Nov 2023,1,3\r\n", "line 5: TIMESTAMP is '17 Nov 2023'"),
        (AZURE + "2023-13-17 00:00:02.0,1,3\r\n", "line 5: TIMESTAMP is '2023-13-17"),
    ],
    ids=[
        "empty",
        "another header",
        "a column less",
        "no number",
        "negative",
        "no stamp",
        "month 13",
    ],
)
def test_a_broken_azure_line_is_named(text: str, said: str) -> None:
    assert said in problem(azure.read, text)


MOONCAKE = "".join(
    f'{{"timestamp": {tick * 3000}, "input_length": {n}, "output_length": 5, "hash_ids": [0]}}\n'
    for tick in range(3)
    for n in range(4)
)


def test_mooncake_ticks_are_spread_within_themselves_by_the_seed() -> None:
    arrivals = read(mooncake.read, MOONCAKE, seed=1)
    assert len({arrival.at_s for arrival in arrivals}) == 12
    for tick in range(3):
        within = [a for a in arrivals if tick * 3.0 <= a.at_s < (tick + 1) * 3.0]
        assert sorted(a.prompt_tokens for a in within) == [0, 1, 2, 3]
    assert arrivals == read(mooncake.read, MOONCAKE, seed=1)
    assert arrivals != read(mooncake.read, MOONCAKE, seed=2)
    assert [a.at_s for a in arrivals] == sorted(a.at_s for a in arrivals)


def test_a_mooncake_trace_with_fine_stamps_is_left_as_it_is() -> None:
    text = "".join(
        f'{{"timestamp": {at}, "input_length": 1, "output_length": 1}}\n' for at in (0, 7, 7, 1500)
    )
    assert [a.at_s for a in read(mooncake.read, text)] == [0.0, 0.007, 0.007, 1.5]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1, 2]", "is no JSON object"),
        ('{"timestamp": 0, "input_le', "is no JSON object"),
        ('{"input_length": 1, "output_length": 1}', "timestamp is None"),
        ('{"timestamp": -5, "input_length": 1, "output_length": 1}', "timestamp is -5"),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 1}', "timestamp is nan"),
        ('{"timestamp": 1, "input_length": 1.5, "output_length": 1}', "input_length is 1.5"),
        ('{"timestamp": 1, "input_length": 1}', "output_length is None"),
    ],
)
def test_a_broken_mooncake_line_is_named(line: str, said: str) -> None:
    said_of_it = problem(mooncake.read, MOONCAKE + "\n" + line + "\n")
    assert said_of_it.startswith("sample: line 14: ")
    assert said in said_of_it


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt_tokens": 1, "output_tokens": 1}', "at_s is None"),
        ('{"at_s": "3", "prompt_tokens": 1, "output_tokens": 1}', "at_s is '3'"),
        ('{"at_s": Infinity, "prompt_tokens": 1, "output_tokens": 1}', "at_s is inf"),
        ('{"at_s": true, "prompt_tokens": 1, "output_tokens": 1}', "at_s is True"),
        ('{"at_s": 1, "prompt_tokens": true, "output_tokens": 1}', "prompt_tokens is True"),
        ('{"at_s": 1, "prompt_tokens": 1, "output_tokens": 1, "service": 3}', "service is 3"),
    ],
)
def test_a_broken_jsonl_line_is_named(line: str, said: str) -> None:
    good = '{"at_s": 0.5, "prompt_tokens": 1, "output_tokens": 1}\n'
    said_of_it = problem(jsonl.read, good + line)
    assert said_of_it.startswith("sample: line 2: ")
    assert said in said_of_it


def test_our_own_format_is_written_and_read_back_alike() -> None:
    arrivals = [Arrival(0.1, 3, 4), Arrival(1 / 3, 0, 0, "chat")]
    file = io.StringIO()
    assert jsonl.write(arrivals, file) == 2
    assert read(jsonl.read, file.getvalue()) == arrivals


def test_a_trace_file_is_known_by_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "conv.csv"
    path.write_text(AZURE, encoding="utf-8", newline="")
    trace = read_trace(path, "azure", seed=0)
    assert (trace.name, len(trace.arrivals)) == ("conv.csv", 3)
    assert len(trace.sha256) == 64
    path.write_text(AZURE + "2023-11-17 00:00:02.0,1,1\r\n", encoding="utf-8", newline="")
    assert read_trace(path, "azure", seed=0).sha256 != trace.sha256


def test_files_that_are_no_trace_are_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    for content, file_format, said in (
        (None, "azure", "No such file or directory; name a readable file"),
        (b"\xff\xfe\x00", "azure", "not a text file"),
        (b"", "jsonl", "holds no request"),
        (b"{}", "parquet", "'parquet' is not permitted; permitted: azure, jsonl, mooncake"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BadInput) as caught:
            read_trace(path, file_format, seed=0)
        assert said in str(caught.value)
        assert len(caught.value.problems) == 1


def test_every_format_in_the_table_says_what_it_is() -> None:
    assert list(FORMATS) == sorted(FORMATS)
    assert all(row.meaning for row in FORMATS.values())


def test_the_azure_conversation_hour_is_read_whole() -> None:
    path = recorded("traces/azure-llm-2023/AzureLLMInferenceTrace_conv.csv")
    found = describe(read_trace(path, "azure", seed=0).arrivals)
    assert found["requests"] == 19_366
    assert found["span_s"] == pytest.approx(3501.721937)
    assert found["mean_rps"] == pytest.approx(5.53, abs=0.01)
    prompt, output = found["prompt_tokens"], found["output_tokens"]
    assert isinstance(prompt, dict)
    assert isinstance(output, dict)
    assert (round(prompt["mean"]), prompt["p50"]) == (1155, 1020)
    assert (round(output["mean"]), output["p50"]) == (211, 129)


def test_the_mooncake_conversation_hour_loses_its_ticks() -> None:
    path = recorded("traces/mooncake/conversation_trace.jsonl")
    found = describe(read_trace(path, "mooncake", seed=0).arrivals)
    assert found["requests"] == 12_031
    peak = found["peak_1s_rps"]
    assert isinstance(peak, float)
    assert peak < 20  # 28 with the ticks as they are recorded
    assert found["idle_10s_ratio"] == 0.0
