# SPDX-License-Identifier: Apache-2.0
"""The status annotation: the last word counts, and unchanged words are not written."""

from collections.abc import AsyncIterator

import pytest

from autoscaler.adapters.kubernetes.annotations import AnnotationWriter, Pace
from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.events import ObjectRef
from autoscaler.adapters.kubernetes.resources import DEPLOYMENTS
from tests.adapters.kubernetes.fake_api_server import FakeApiServer
from tests.adapters.kubernetes.waiting import until

IRIS = ObjectRef(DEPLOYMENTS, "here", "iris")
STATUS = "tidegate.dev/status"


@pytest.fixture
async def writer(api: KubeApi, server: FakeApiServer) -> AsyncIterator[AnnotationWriter]:
    await server.put(IRIS.path, {"metadata": {"annotations": {"theirs": "stays"}}})
    writer = AnnotationWriter(api, pace=Pace(gap_s=0.1, at_once=2))
    writer.start()
    yield writer
    await writer.stop()


def status(server: FakeApiServer, name: str = "iris") -> str | None:
    annotations = server.objects["apps", "deployments", "here", name]["metadata"]["annotations"]
    return annotations.get(STATUS)  # type: ignore[no-any-return]


async def test_the_last_of_several_words_is_written(
    writer: AnnotationWriter, server: FakeApiServer
) -> None:
    """One write for the first, and one for the last, a moment later."""
    writer.annotate(IRIS, {STATUS: "1 replica"})
    await until(lambda: status(server) == "1 replica", "the first")
    for n in range(2, 6):
        writer.annotate(IRIS, {STATUS: f"{n} replicas"})
    await until(lambda: status(server) == "5 replicas", "the last")
    assert len(server.asked_for("patch")) == 2
    metadata = server.objects["apps", "deployments", "here", "iris"]["metadata"]
    assert metadata["annotations"]["theirs"] == "stays"


async def test_what_stands_already_is_not_written(
    writer: AnnotationWriter, server: FakeApiServer
) -> None:
    """Neither what was seen to stand, nor what was just written and is not seen yet."""
    writer.annotate(IRIS, {STATUS: "asleep"}, seen={STATUS: "asleep"})
    writer.annotate(IRIS, {STATUS: "awake"}, seen={STATUS: "asleep"})
    await until(lambda: status(server) == "awake", "the change")
    writer.annotate(IRIS, {STATUS: "awake"}, seen={STATUS: "asleep"})
    writer.annotate(IRIS, {STATUS: "last"})
    await until(lambda: status(server) == "last", "the end")
    assert len(server.asked_for("patch")) == 2


async def test_a_word_taken_back_before_it_was_written_is_not_written(
    writer: AnnotationWriter, server: FakeApiServer
) -> None:
    writer.annotate(IRIS, {STATUS: "1"})
    await until(lambda: status(server) == "1", "the first")
    writer.annotate(IRIS, {STATUS: "2"})
    writer.annotate(IRIS, {STATUS: "1"})
    other = ObjectRef(DEPLOYMENTS, "here", "other")
    await server.put(other.path, {})
    writer.annotate(other, {STATUS: "x"})
    await until(lambda: len(server.asked_for("patch")) == 2, "the other one")
    assert status(server, "other") == "x"
    assert status(server) == "1"


async def test_an_annotation_waits_for_a_server_that_is_away(
    writer: AnnotationWriter, server: FakeApiServer
) -> None:
    await server.down()
    writer.annotate(IRIS, {STATUS: "asleep"})
    await server.up()
    await until(lambda: status(server) == "asleep", "the annotation")


async def test_one_that_is_gone_or_forbidden_harms_no_other(
    writer: AnnotationWriter, server: FakeApiServer
) -> None:
    gone = ObjectRef(DEPLOYMENTS, "here", "gone")
    server.fail(403, verb="patch")
    writer.annotate(gone, {STATUS: "x"})
    writer.annotate(ObjectRef(DEPLOYMENTS, "here", "gone too"), {STATUS: "x"})
    writer.annotate(IRIS, {STATUS: "asleep"})
    await until(lambda: status(server) == "asleep", "the annotation")


async def test_none_takes_an_annotation_away(
    writer: AnnotationWriter, server: FakeApiServer
) -> None:
    writer.annotate(IRIS, {STATUS: "asleep"})
    await until(lambda: status(server) == "asleep", "the annotation")
    writer.annotate(IRIS, {STATUS: None})
    await until(lambda: status(server) is None, "its end")
