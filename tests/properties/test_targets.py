# SPDX-License-Identifier: Apache-2.0
"""Whatever stands in `targets` is either refused or means one thing."""

from hypothesis import example, given
from hypothesis import strategies as st

from autoscaler.contract import TARGET_LEAST, TARGET_MOST, targets
from autoscaler.core.policies.target import propose
from autoscaler.core.policy import Target
from autoscaler.core.signals import RATIOS, Reading
from autoscaler.text import Unreadable
from tests.builders import a_policy

# Letters that such texts are made of, so that many come near to being right.
pieces = st.sampled_from(
    ["prometheus(", "prometeus(", "kv", "rps", "concurrency", "tokens/s", "sum(x)", 'x{a="b"}',
     "(", ")", "[1m]", "{", "}", "]", "'", '"', "`", "\\", "=", ",", "%", "8", "0.5", "80%", " ",
     "\n", "-1", "1e9", "ü", "0" * 30 + "1"]
)  # fmt: skip
texts = st.lists(pieces, max_size=14).map("".join) | st.text(max_size=60)


def written(target: Target) -> str:
    """A target as a person would write it down again, exact to the last bit."""
    return f"{target.signal}={target.per_replica:.40f}"


@given(texts)
@example("prometheus(x)=0.000001, kv=0.0001%")
def test_any_text_is_refused_in_one_line_or_read_again_as_it_was_read(text: str) -> None:
    """Nothing crashes it; what it accepts, it accepts again as the same."""
    try:
        read = targets(text)
    except Unreadable as unreadable:
        why = str(unreadable)
    else:
        why = ""
        assert read
        assert targets(", ".join(map(written, read))) == read
    assert why.isprintable()


@given(texts, st.floats(0, 1e15))
@example("kv=0.0001%", 1e15)
def test_no_accepted_target_breaks_a_decision(text: str, value: float) -> None:
    """Every amount is within bounds that leave any count finite."""
    try:
        read = targets(text)
    except Unreadable:
        return
    for target in read:
        assert TARGET_LEAST <= target.per_replica <= (1 if target.signal in RATIOS else TARGET_MOST)
    seen = {target.signal: Reading(value, 0.0, "test") for target in read}
    assert propose(seen, a_policy(targets=read), current=1).replicas >= 0
