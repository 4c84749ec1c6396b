# SPDX-License-Identifier: Apache-2.0
"""KEDA is told the truth about a service, and where the truth is not known it is told that."""

import asyncio
import re
from collections.abc import AsyncIterable
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2

from autoscaler.api.keda import externalscaler_pb2
from autoscaler.core.policy import Target
from autoscaler.core.signals import Measure, NoReading, Quantity, Query, Reading, ServiceId, Signal
from tests.api.keda.client import WITHIN_S, compiled
from tests.api.keda.conftest import LLM, Keda
from tests.builders import a_reading

GATEWAY = Query('sum(rate(gateway_requests_total{service="llm"}[1m]))')
Seen = dict[Quantity, Reading | NoReading]


def load(waiting: float, *, in_flight: float = 0.0, share_ratio: float = 1.0) -> Seen:
    """Requests in the replicas' queues and in flight, and nothing held anywhere."""
    return {
        Measure.HELD: a_reading(0.0),
        Measure.IN_FLIGHT: a_reading(in_flight, share_ratio=share_ratio),
        Measure.WAITING: a_reading(waiting, share_ratio=share_ratio),
        Measure.HELD_SECONDS_TOTAL: a_reading(0.0),
        Measure.REQUESTS_TOTAL: a_reading(7.0, share_ratio=share_ratio),
    }


def queue_of(per_replica: float) -> dict[str, Any]:
    return {"targets": (Target(Signal.QUEUE, per_replica),)}


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), str(refused.value.details())


async def heard(stream: AsyncIterable[Any]) -> Any:
    """The next message. Raises `StopAsyncIteration` when the stream ended well."""
    return await asyncio.wait_for(anext(aiter(stream)), WITHIN_S)


def test_the_committed_stubs_are_those_of_the_proto() -> None:
    """Whoever changes the interface writes the stubs anew."""
    ours, theirs = descriptor_pb2.FileDescriptorProto(), compiled()
    externalscaler_pb2.DESCRIPTOR.CopyToProto(ours)
    ours.name = theirs.name
    plain = re.sub(r"\s+json_name: .*", "", str(theirs))  # which follow from the names
    assert str(ours) == plain


# The numbers and types that KEDA's published interface gives its fields.
PUBLISHED = {
    "ScaledObjectRef": {"name": (1, "string"), "namespace": (2, "string"),
                        "scalerMetadata": (3, "ScalerMetadataEntry")},
    "IsActiveResponse": {"result": (1, "bool")},
    "GetMetricSpecResponse": {"metricSpecs": (1, "MetricSpec")},
    "MetricSpec": {"metricName": (1, "string"), "targetSize": (2, "int64"),
                   "targetSizeFloat": (3, "double")},
    "GetMetricsRequest": {"scaledObjectRef": (1, "ScaledObjectRef"), "metricName": (2, "string")},
    "GetMetricsResponse": {"metricValues": (1, "MetricValue")},
    "MetricValue": {"metricName": (1, "string"), "metricValue": (2, "int64"),
                    "metricValueFloat": (3, "double")},
}  # fmt: skip


def test_the_interface_is_kedas() -> None:
    """On the wire numbers and types are all there is: a wrong one is another interface."""
    kinds = descriptor_pb2.FieldDescriptorProto.Type.Name

    def kind(field: descriptor_pb2.FieldDescriptorProto) -> str:
        return field.type_name.rpartition(".")[2] or kinds(field.type)[5:].lower()

    assert {
        message.name: {field.name: (field.number, kind(field)) for field in message.field}
        for message in compiled().message_type
    } == PUBLISHED


async def test_the_hpa_is_led_to_tidegates_wish(keda: Keda) -> None:
    """Value over target is the count that Tidegate would have, though it writes none itself."""
    keda.serves(scale=2, **queue_of(4.0))
    await keda.sees(load(21.0))
    spec, metric = await keda.spec(), await keda.metric()
    assert (spec.metricName, spec.targetSize, spec.targetSizeFloat) == ("tidegate-wish", 1, 1.0)
    assert (metric.metricName, metric.metricValue, metric.metricValueFloat) == (
        "tidegate-wish", 6, 6.0
    )  # fmt: skip
    assert await keda.active()
    assert keda.cluster.scaled == []


async def test_the_wish_follows_its_own_advice(keda: Keda) -> None:
    """The HPA's write is no override: the wish goes on from it at once."""
    keda.serves(scale=2, **queue_of(4.0))
    await keda.sees(load(21.0))
    keda.serves(scale=6, written_by="kube-controller-manager", **queue_of(4.0))
    await keda.sees(load(30.0))
    assert (await keda.metric()).metricValueFloat == 8.0


@pytest.mark.parametrize(
    ("metadata", "name", "value", "target"),
    [
        ({"signal": "queue"}, "tidegate-queue", 21.0, 4.0),
        ({"signal": "queue", "target": "1.5"}, "tidegate-queue", 21.0, 1.5),
        ({"signal": "kv", "target": "80%"}, "tidegate-kv", 1.25, 0.8),
        ({"signal": "gpu-utilization", "target": "0.7"}, "tidegate-gpu-utilization", 0.9, 0.7),
        ({"signal": str(GATEWAY)}, "tidegate-prometheus", 33.0, 5.0),
        ({"signal": "wish", "target": "2"}, "tidegate-wish", 7.0, 2.0),
    ],
    ids=lambda told: str(told) if isinstance(told, dict) else "",
)
async def test_any_signal_can_be_asked_for(
    keda: Keda, metadata: dict[str, str], name: str, value: float, target: float
) -> None:
    """The whole service's value, and a target per replica: the trigger's, or the service's own."""
    keda.serves(scale=2, targets=(Target(Signal.QUEUE, 4.0), Target(GATEWAY, 5.0)))
    more: Seen = {
        Measure.KV_USED: a_reading(1.25),
        Signal.GPU_UTILIZATION: a_reading(0.9),
        GATEWAY: a_reading(33.0),
    }
    await keda.sees(load(21.0) | more)
    spec, metric = await keda.spec(**metadata), await keda.metric(name, **metadata)
    assert (spec.metricName, metric.metricName) == (name, name)
    assert spec.targetSizeFloat == pytest.approx(target)
    assert metric.metricValueFloat == pytest.approx(value)
    # A KEDA that knows no fractions sees no target of 0, and no demand rounded away.
    assert spec.targetSize >= target
    assert metric.metricValue >= value


async def test_a_service_of_another_name_can_be_asked_for(keda: Keda) -> None:
    """The ScaledObject's own namespace and name are only the default."""
    other = ServiceId("models", "embed")
    keda.serves(scale=1, service=other)
    keda.serves(scale=3, service=ServiceId("team", "rerank"))
    await keda.sees(load(0.0), service=other)
    assert (await keda.metric(service="models/embed")).metricValueFloat == 1.0
    assert (await keda.metric(service="rerank")).metricValueFloat == 3.0


# Absence is not zero


async def test_an_unread_signal_is_an_error_and_not_a_zero(keda: Keda) -> None:
    """KEDA and its HPA then hold, or fall back; and the words say what is missing."""
    keda.serves(scale=3, **queue_of(4.0))
    gone = NoReading("scrape timed out")
    await keda.sees({Measure.HELD: gone, Measure.IN_FLIGHT: gone, Measure.WAITING: gone})
    for call in (keda.metric(signal="queue"), keda.active(signal="queue")):
        code, words = await status_of(call)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "scrape timed out" in words
    # The wish is Tidegate's own answer to the same silence: what is there stays.
    assert (await keda.metric()).metricValueFloat == 3.0
    assert await keda.active()


@pytest.mark.parametrize(("waiting", "told"), [(3.0, None), (11.0, None), (13.0, 13.0)])
async def test_a_part_of_the_replicas_may_raise_and_never_lower(
    keda: Keda, waiting: float, told: float | None
) -> None:
    """Two of three replicas told: their sum is told only where it asks for no fewer."""
    keda.serves(scale=3, **queue_of(4.0))
    await keda.sees(load(waiting, share_ratio=2 / 3))
    if told is None:
        code, words = await status_of(keda.metric(signal="queue"))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "67% of the replicas" in words
    else:
        assert (await keda.metric(signal="queue")).metricValueFloat == told


async def test_a_prometheus_that_is_down_does_not_put_a_service_to_sleep(keda: Keda) -> None:
    """Asleep, only the query tells of requests: silence is an error, and 0 is a proven 0."""
    keda.serves(scale=0, targets=(Target(GATEWAY, 5.0),))
    await keda.sees(load(0.0) | {GATEWAY: NoReading("Prometheus answered 503")})
    code, words = await status_of(keda.active(signal=str(GATEWAY)))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "503" in words
    await keda.sees(load(0.0) | {GATEWAY: a_reading(0.0)})
    assert not await keda.active(signal=str(GATEWAY))
    await keda.sees(load(0.0) | {GATEWAY: a_reading(0.5)})
    assert await keda.active(signal=str(GATEWAY))


async def test_silent_activators_prove_no_idleness(keda: Keda) -> None:
    """Whether a request is held is known to them alone; 0 replicas and no word is no `inactive`."""
    keda.serves(scale=0)
    silent = NoReading("no activator speaks")
    await keda.sees({Measure.HELD: silent, Measure.IN_FLIGHT: silent})
    code, words = await status_of(keda.active())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "no activator speaks" in words


async def test_what_replicas_have_is_nothing_where_there_is_none(keda: Keda) -> None:
    """No replica, no cache in use: that is no failed query, and KEDA need not complain."""
    keda.serves(scale=0)
    await keda.sees(load(0.0))
    assert (await keda.metric(signal="kv", target="80%")).metricValueFloat == 0.0
    assert not await keda.active(signal="kv", target="80%")


async def test_an_old_decision_is_no_answer(keda: Keda) -> None:
    """A loop that stands still, say because the platform cannot be read, knows nothing any more."""
    keda.serves(scale=3, **queue_of(4.0))
    await keda.sees(load(21.0))
    keda.clock.at_s += 31.0
    for call in (keda.metric(), keda.active(), keda.metric(signal="queue")):
        code, words = await status_of(call)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "31 s old" in words
    assert (await keda.spec()).targetSizeFloat == 1.0  # the HPA itself stays as it is


# Active, and at rest


async def test_a_service_is_active_until_its_idleness_is_proven(keda: Keda) -> None:
    """`scale-to-zero-after` is waited for here; KEDA's cooldownPeriod need not be."""
    keda.serves(scale=1, scale_to_zero_after=60.0)
    await keda.sees(load(0.0), for_s=50.0)
    assert await keda.active()
    await keda.sees(load(0.0), for_s=15.0)
    assert not await keda.active()
    await keda.sees(load(0.0, in_flight=1.0), for_s=1.0)
    assert await keda.active()


async def test_a_service_that_may_not_sleep_stays_active(keda: Keda) -> None:
    """`min-replicas` holds for KEDA's step to zero as well."""
    keda.serves(scale=1, min_replicas=1, scale_to_zero_after=60.0)
    await keda.sees(load(0.0), for_s=200.0)
    assert await keda.active()


async def test_what_keda_put_to_sleep_stays_asleep_until_there_is_demand(keda: Keda) -> None:
    """The step to zero does not undo itself; a request that is held does."""
    keda.serves(scale=1, scale_to_zero_after=60.0)
    await keda.sees(load(0.0), for_s=65.0)
    keda.serves(scale=0, scale_to_zero_after=60.0, written_by="keda")
    await keda.sees(load(0.0), for_s=20.0)
    assert not await keda.active()
    await keda.sees(load(0.0) | {Measure.HELD: a_reading(1.0)}, for_s=1.0)
    assert await keda.active()


async def test_a_warm_cache_is_no_activity(keda: Keda) -> None:
    """Requests tell whether a replica works; caches and GPUs are never quite at 0.

    One quiet moment between two requests is no rest, though: idleness is proven over time.
    """
    warm = load(0.0) | {Measure.KV_USED: a_reading(0.3)}
    keda.serves(scale=1, scale_to_zero_after=60.0)
    await keda.sees(warm, for_s=50.0)
    assert await keda.active(signal="kv", target="80%")
    await keda.sees(warm, for_s=15.0)
    assert not await keda.active(signal="kv", target="80%")
    assert (await keda.metric(signal="kv", target="80%")).metricValueFloat == pytest.approx(0.3)


# Streams


async def test_activity_is_pushed_when_it_changes(keda: Keda) -> None:
    """Once at the start, then with the very decision that changed it, and never twice the same."""
    keda.serves(scale=0)
    await keda.sees(load(0.0), for_s=3.0)
    stream = aiter(keda.client.listen("StreamIsActive", keda.ref()))
    assert not (await heard(stream)).result
    await keda.sees(load(0.0), for_s=3.0)
    await keda.sees(load(0.0) | {Measure.HELD: a_reading(1.0)}, for_s=3.0)
    assert (await heard(stream)).result
    keda.serves(scale=1)
    await keda.sees(load(0.0), for_s=70.0)
    assert not (await heard(stream)).result


async def test_a_stream_outlives_silence(keda: Keda) -> None:
    """KEDA waits up to a minute before it opens a stream anew: what is unknown is just not told."""
    keda.serves(scale=0)
    silent = NoReading("no activator speaks")
    await keda.sees({Measure.HELD: silent, Measure.IN_FLIGHT: silent})
    stream = aiter(keda.client.listen("StreamIsActive", keda.ref()))
    first = asyncio.create_task(heard(stream))
    await keda.sees({Measure.HELD: silent, Measure.IN_FLIGHT: silent})
    assert not first.done()
    await keda.sees(load(0.0) | {Measure.HELD: a_reading(1.0)})
    assert (await first).result


async def test_streams_end_without_an_error_when_the_controller_stops(keda: Keda) -> None:
    """KEDA then asks again within two seconds, not within a minute."""
    keda.serves(scale=0)
    await keda.sees(load(0.0))
    stream = aiter(keda.client.listen("StreamIsActive", keda.ref()))
    assert not (await heard(stream)).result
    ended = asyncio.create_task(heard(stream))
    await keda.server.stop()
    with pytest.raises(StopAsyncIteration):
        await ended


async def test_a_new_target_is_pushed(keda: Keda) -> None:
    """Where the target is the service's own, the HPA follows the annotation."""
    keda.serves(scale=2, **queue_of(4.0))
    await keda.sees(load(21.0), for_s=1.0)
    stream = aiter(keda.client.listen("StreamMetricSpec", keda.ref(signal="queue")))
    assert (await heard(stream)).metricSpecs[0].targetSizeFloat == 4.0
    keda.serves(scale=2, **queue_of(7.0))
    await keda.sees(load(21.0), for_s=1.0)
    assert (await heard(stream)).metricSpecs[0].targetSizeFloat == 7.0


# What a user got wrong


async def test_an_unknown_service_is_named_with_those_there_are(keda: Keda) -> None:
    """Those of the same namespace first."""
    for name in ("a/chat", "team/embed"):
        keda.serves(scale=1, service=ServiceId(*name.split("/")))
    await keda.loop.tick()
    for method in ("IsActive", "GetMetricSpec"):
        code, words = await status_of(keda.client.ask(method, keda.ref()))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "knows no team/llm; there are: team/embed, a/chat" in words
    code, _ = await status_of(heard(keda.client.listen("StreamIsActive", keda.ref())))
    assert code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (
            {"signal": "que"},
            "signal: 'que' is not permitted.*did you mean 'queue'.*permitted: wish",
        ),
        ({"signal": "queue=1, rps"}, "signal: .* is not permitted"),
        ({"signal": "prometheus(up)"}, r"nobody asks prometheus\(up\).*permitted: the queries"),
        ({"signl": "queue"}, "signl: unknown key, did you mean 'signal'.*service, signal, target"),
        ({"signal": "rps"}, "team/llm has no target for rps"),
        ({"signal": "rps", "target": "0"}, "target: '0' is not permitted"),
        ({"signal": "rps", "target": "many"}, "target: 'many' is not permitted"),
        ({"signal": "kv", "target": "140%"}, "target: '140%' is not permitted"),
        ({"target": "nan"}, "target: 'nan' is not permitted"),
        ({"target": "0.0001"}, "target: '0.0001' is not permitted.*from 0.001"),
        ({"service": "a/b/c"}, "service: 'a/b/c' is not permitted; permitted: NAME"),
    ],
    ids=str,
)
async def test_wrong_metadata_is_refused_with_what_is_permitted(
    keda: Keda, metadata: dict[str, str], words: str
) -> None:
    """KEDA shows the words in the ScaledObject's events and in its log."""
    keda.serves(scale=1, **queue_of(4.0))
    await keda.sees(load(0.0), for_s=1.0)
    for call in (keda.spec(**metadata), keda.metric(**metadata)):
        code, said = await status_of(call)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert re.search(words, said), said


async def test_however_much_is_wrong_the_words_arrive(keda: Keda) -> None:
    """They travel in a header; one that is too long would end the call with other words."""
    keda.serves(scale=1)
    await keda.sees(load(0.0), for_s=1.0)
    code, words = await status_of(keda.spec(**{f"key{n}" * 50: "x" for n in range(100)}))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "permitted: service, signal, target" in words


async def test_a_metric_of_an_earlier_trigger_is_refused(keda: Keda) -> None:
    """An HPA that still has the target of another signal must not get this one's value."""
    keda.serves(scale=1)
    await keda.sees(load(0.0), for_s=1.0)
    code, words = await status_of(keda.metric("tidegate-queue"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "permitted: tidegate-wish" in words


async def test_a_service_that_stands_still_has_no_wish(keda: Keda) -> None:
    """Paused, or scaled by two: the remedy is said, and the signals are told all the same."""
    keda.serves(scale=2, dry_run=False, paused=True, **queue_of(4.0))
    await keda.sees(load(21.0))
    for call in (keda.metric(), keda.active()):
        code, words = await status_of(call)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "tidegate.dev/dry-run" in words
    assert (await keda.metric(signal="queue")).metricValueFloat == 21.0


async def test_a_number_beyond_reason_still_fits_the_wire(keda: Keda) -> None:
    """An HPA counts in thousandths of an int64."""
    keda.serves(scale=1, targets=(Target(GATEWAY, 5.0),))
    await keda.sees(load(0.0) | {GATEWAY: a_reading(1e300)}, for_s=1.0)
    assert (await keda.metric(signal=str(GATEWAY))).metricValueFloat == 1e9
    assert LLM in keda.loop.records


async def test_names_of_services_that_there_are_not_cost_nothing(keda: Keda) -> None:
    """Whoever reaches the port may ask for any of them, for as long as they like."""
    for number in range(20):
        stream = aiter(keda.client.listen("StreamIsActive", keda.ref(service=f"no-{number}")))
        with pytest.raises(grpc.aio.AioRpcError):
            await heard(stream)
    assert not keda.scaler._news
