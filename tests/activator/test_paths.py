# SPDX-License-Identifier: Apache-2.0
"""Which paths never wake a service, what is answered there, and in which shape errors come."""

import orjson
import pytest

from autoscaler.activator.errors import error_body, response, speaks_openai
from autoscaler.activator.paths import WhenAsleep, asleep_body, quiet


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/", WhenAsleep.LIVE),
        ("/health", WhenAsleep.READY),
        ("/healthz", WhenAsleep.READY),
        ("/ping", WhenAsleep.READY),
        ("/version", WhenAsleep.LIST),
        ("/load", WhenAsleep.LIST),
        ("/metrics", WhenAsleep.LIST),
        ("/metrics/", WhenAsleep.LIST),
        ("/v1/models", WhenAsleep.LIST),
        ("/openai/v1/models", WhenAsleep.LIST),
        ("/v1/models/m", WhenAsleep.READY),
        ("/v2", WhenAsleep.LIST),
        ("/v2/health/live", WhenAsleep.LIVE),
        ("/v2/health/ready", WhenAsleep.READY),
        ("/v2/models/m", None),
        ("/v2/models/m/ready", WhenAsleep.READY),
        ("/v2/models/m/versions/2/ready", WhenAsleep.READY),
        ("/v2/models/m/config", WhenAsleep.LIST),
        ("/v2/models/stats", WhenAsleep.LIST),
        ("/v1/models/m:predict", None),
        ("/v2/models/m/infer", None),
        ("/v1/chat/completions", None),
        ("/healthy", None),
        ("/x", None),
    ],
)
def test_the_table_says_what_is_answered_asleep(path: str, answer: WhenAsleep | None) -> None:
    assert quiet("GET", path) is answer
    assert quiet("HEAD", path) is answer


def test_whatever_is_not_read_only_wakes() -> None:
    assert quiet("POST", "/health") is None
    assert quiet("POST", "/v2/models/m") is None


def test_a_sleeping_model_is_ready_and_says_that_it_sleeps() -> None:
    body = asleep_body(WhenAsleep.READY, "/v2/models/m/ready", state="asleep")
    assert orjson.loads(body) == {"name": "m", "ready": True, "state": "asleep"}


@pytest.mark.parametrize(
    ("path", "openai"),
    [
        ("/v1/chat/completions", True),
        ("/openai/v1/completions", True),
        ("/v1/embeddings", True),
        ("/v1/responses/abc/cancel", True),
        ("/v1/messages", True),
        ("/v1/models", True),
        ("/v1/models/gpt", True),
        ("/v1/models/m:predict", False),
        ("/v2/models/m/infer", False),
        ("/x", False),
    ],
)
def test_errors_take_the_shape_of_the_protocol_asked(path: str, openai: bool) -> None:
    assert speaks_openai(path) is openai
    error = orjson.loads(error_body(path, 503, "full"))["error"]
    if openai:
        assert error == {"message": "full", "type": "overloaded", "code": "503", "param": None}
    else:
        assert error == "full"


def test_a_name_cannot_break_out_of_its_header_line() -> None:
    answer = response(200, b"", service="m\r\nX-Evil: 1 é", close=True)
    assert b"X-Tidegate-Service: m??X-Evil: 1 ?\r\n" in answer
