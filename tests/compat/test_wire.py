# SPDX-License-Identifier: Apache-2.0
"""What goes over the wire is, byte by byte, what kube-scheduler writes and reads.

The shared cases are read from `$TIDEGATE_CASES`, or beside the repository.
"""

import json
import os
from pathlib import Path
from typing import Any

import orjson
import pytest

from scheduler_extender import wire
from scheduler_extender.errors import Malformed

CASES = Path(
    os.environ.get("TIDEGATE_CASES") or Path(__file__).parents[3] / "shared" / "data" / "cases"
)
POD = {"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"containers": None}}


def shared_cases() -> list[Any]:
    file = CASES / "packing_cases.json"
    if not file.is_file():
        reason = f"no {file}; set TIDEGATE_CASES to the folder with the cases"
        return [pytest.param({}, marks=pytest.mark.skip(reason=reason))]
    cases = json.loads(file.read_text())["cases"]
    return [pytest.param(case, id=case["id"]) for case in cases if case["kind"] == "wire_json"]


@pytest.mark.parametrize("case", shared_cases())
def test_a_shared_wire_case_is_met_byte_by_byte(case: dict[str, Any]) -> None:
    wanted = case["expect"]["json"]
    expected = json.dumps(wanted, separators=(",", ":")).encode()
    assert case["input"]["type"] == "HostPriority", "a kind of case that is new here"
    written = wire.scores_reply([wire.host_priorities(wanted["Host"])[wanted["Score"]]])
    assert written == b"[" + expected + b"]"


def test_a_filter_reply_writes_every_field_of_the_go_struct_in_its_order() -> None:
    asked = wire.candidates(_body(Pod=POD, Nodes=None, NodeNames=["n1", "n2", "n3"]))
    found = wire.Filtered(["n1"], {"n2": "full"}, {"n3": "no GPU"})
    assert wire.filter_reply(asked, found) == (
        b'{"Nodes":null,"NodeNames":["n1"],"FailedNodes":{"n2":"full"},'
        b'"FailedAndUnresolvableNodes":{"n3":"no GPU"},"Error":""}'
    )


def test_a_filter_reply_without_a_fit_says_an_empty_list_and_not_null() -> None:
    asked = wire.candidates(_body(Pod=POD, Nodes=None, NodeNames=["n1"]))
    reply = wire.filter_reply(asked, wire.Filtered((), {"n1": "full"}))
    assert reply == (
        b'{"Nodes":null,"NodeNames":[],"FailedNodes":{"n1":"full"},'
        b'"FailedAndUnresolvableNodes":{},"Error":""}'
    )


def test_whole_nodes_are_answered_with_whole_nodes() -> None:
    nodes = [{"metadata": {"name": name, "labels": {"a": "b"}}} for name in ("n1", "n2")]
    asked = wire.candidates(_body(Pod=POD, Nodes={"metadata": {}, "items": nodes}, NodeNames=None))
    assert list(asked.names) == ["n1", "n2"]
    reply = orjson.loads(wire.filter_reply(asked, wire.Filtered(["n2"], {"n1": "full"})))
    assert reply["Nodes"] == {"metadata": {}, "items": [nodes[1]]}
    assert reply["NodeNames"] is None


def test_lists_that_are_both_null_ask_for_no_node() -> None:
    asked = wire.candidates(_body(Pod=POD, Nodes=None, NodeNames=None))
    assert list(asked.names) == []
    assert orjson.loads(wire.filter_reply(asked, wire.Filtered()))["NodeNames"] == []


@pytest.mark.parametrize("spelled", [str.lower, str.upper, str.swapcase])
def test_keys_are_read_in_any_letter_case(spelled: Any) -> None:
    body = orjson.dumps({spelled("Pod"): POD, spelled("NodeNames"): ["n1"]})
    assert wire.candidates(body) == wire.Candidates(POD, ["n1"])
    bind = {"PodName": "p", "PodNamespace": "ns", "PodUID": "u", "Node": "n1"}
    told = wire.bind_ask(orjson.dumps({spelled(key): text for key, text in bind.items()}))
    assert told == wire.BindAsk("p", "ns", "u", "n1")
    meta = {spelled("Pods"): [{spelled("UID"): "v"}], spelled("NumPDBViolations"): 2}
    ask = wire.preempt_ask(
        orjson.dumps({spelled("Pod"): POD, spelled("NodeNameToMetaVictims"): {"n1": meta}})
    )
    assert ask.victims == {"n1": wire.Victims(("v",), 2)}


def test_a_bind_reply_is_its_error_alone() -> None:
    assert wire.bind_reply() == b'{"Error":""}'
    assert wire.bind_reply("no room") == b'{"Error":"no room"}'


def test_victims_sent_whole_are_answered_by_uid() -> None:
    whole = {"n1": {"Pods": [{"metadata": {"uid": "v"}}], "NumPDBViolations": 1}}
    ask = wire.preempt_ask(_body(Pod=POD, NodeNameToVictims=whole, NodeNameToMetaVictims=None))
    assert wire.preempt_reply(ask.victims) == (
        b'{"NodeNameToMetaVictims":{"n1":{"Pods":[{"UID":"v"}],"NumPDBViolations":1}}}'
    )


def test_a_score_is_written_as_an_integer_and_a_name_is_quoted() -> None:
    best, worst = wire.host_priorities('n"1')[10], wire.host_priorities("n2")[0]
    assert wire.scores_reply([best, worst]) == (
        b'[{"Host":"n\\"1","Score":10},{"Host":"n2","Score":0}]'
    )
    assert wire.scores_reply([]) == b"[]"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"{}", b'{"Pod":null}', b'{"Pod":{},"NodeNames":"n1"}',
     b'{"Pod":{},"Nodes":{"items":[{}]}}'],
)  # fmt: skip
def test_a_body_of_another_form_is_refused_with_its_name(body: bytes) -> None:
    with pytest.raises(Malformed, match="ExtenderArgs"):
        wire.candidates(body)


@pytest.mark.parametrize("body", [b"{}", b'{"PodName":"p","PodNamespace":"n","PodUID":"u"}'])
def test_a_binding_that_does_not_name_all_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed, match="PodUID"):
        wire.bind_ask(body)


def test_a_victim_without_uid_is_refused() -> None:
    body = _body(Pod=POD, NodeNameToMetaVictims={"n1": {"Pods": [{}], "NumPDBViolations": 0}})
    with pytest.raises(Malformed, match="victims"):
        wire.preempt_ask(body)


def _body(**fields: Any) -> bytes:
    return orjson.dumps(fields)
