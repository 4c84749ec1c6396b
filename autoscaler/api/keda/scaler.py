# SPDX-License-Identifier: Apache-2.0
"""KEDA's external scaler by gRPC: each call is answered at once, from what the loop last recorded.

It changes nothing, and asks nobody. Only this file knows gRPC's status codes.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from math import ceil
from typing import Any, Final, TypeVar

import grpc

from autoscaler.api.keda import answers
from autoscaler.api.keda import externalscaler_pb2 as pb
from autoscaler.api.keda.answers import Because, NoAnswer
from autoscaler.api.keda.trigger import Trigger, read
from autoscaler.core.signals import ServiceId
from autoscaler.errors import BadInput
from autoscaler.loop import ControlLoop, Record

SERVICE: Final = "externalscaler.ExternalScaler"
STALE_AFTER_S: Final = 30.0  # a loop that has said nothing for so long may know nothing any more
NAMED_MOST: Final = 10  # services that an error names
WORDS_MOST: Final = 1500  # letters of an error: they travel in a header, which ends at 8 KiB

CODES: Final[Mapping[Because, grpc.StatusCode]] = {
    Because.UNREAD: grpc.StatusCode.UNAVAILABLE,
    Because.UNFIT: grpc.StatusCode.FAILED_PRECONDITION,
}
PASSING: Final = frozenset(CODES.values())  # the next record may tell otherwise

Context = grpc.aio.ServicerContext[Any, Any]
Answer = TypeVar("Answer")


class _Refused(Exception):
    """A call that ends with a status instead of an answer."""

    def __init__(self, code: grpc.StatusCode, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.why = why


class ExternalScaler:
    """Answers KEDA's calls. `recorded` is to be told of each record of the loop."""

    def __init__(
        self,
        loop: ControlLoop,
        *,
        now_s: Callable[[], float],
        tick_s: float = 1.0,
    ) -> None:
        self._loop = loop
        self._now_s = now_s
        self._stale_after_s = max(STALE_AFTER_S, 3 * tick_s)
        self._news: dict[ServiceId, asyncio.Event] = {}
        self._closed = False

    def recorded(self, record: Record) -> None:
        """Something was decided: whoever waits for news of the service looks again."""
        news = self._news.pop(record.decision.service, None)
        if news is not None:
            news.set()

    def close(self) -> None:
        """End every stream, as one that has said all there is to say."""
        self._closed = True
        for news in self._news.values():
            news.set()
        self._news.clear()

    # KEDA's calls

    async def is_active(self, asked: pb.ScaledObjectRef, context: Context) -> pb.IsActiveResponse:
        async with _Status(context):
            return self._active(_trigger(asked))

    async def stream_is_active(
        self, asked: pb.ScaledObjectRef, context: Context
    ) -> AsyncIterator[pb.IsActiveResponse]:
        async with _Status(context):
            trigger = _trigger(asked)
            async for answer in self._changes(trigger, self._active):
                yield answer

    async def get_metric_spec(
        self, asked: pb.ScaledObjectRef, context: Context
    ) -> pb.GetMetricSpecResponse:
        async with _Status(context):
            return self._spec(_trigger(asked))

    async def stream_metric_spec(
        self, asked: pb.ScaledObjectRef, context: Context
    ) -> AsyncIterator[pb.GetMetricSpecResponse]:
        async with _Status(context):
            trigger = _trigger(asked)
            async for answer in self._changes(trigger, self._spec):
                yield answer

    async def get_metrics(
        self, asked: pb.GetMetricsRequest, context: Context
    ) -> pb.GetMetricsResponse:
        async with _Status(context):
            trigger = _trigger(asked.scaledObjectRef)
            if asked.metricName not in ("", trigger.metric):
                # The trigger was changed, and the HPA's target is still that of another signal.
                raise BadInput(
                    f"metricName: {asked.metricName!r} is not what this trigger has now; "
                    f"permitted: {trigger.metric}"
                )
            return self._metrics(trigger)

    # What they are told

    def _active(self, trigger: Trigger) -> pb.IsActiveResponse:
        record = self._record(trigger.service)
        said = answers.active(trigger, record)
        return pb.IsActiveResponse(result=_told(said))

    def _spec(self, trigger: Trigger) -> pb.GetMetricSpecResponse:
        """The target. It needs no reading: without it KEDA would make no HPA at all."""
        target = trigger.per_replica(self._known(trigger.service).policy)
        # KEDA looks at the whole number where it knows no fractions.
        spec = pb.MetricSpec(
            metricName=trigger.metric, targetSize=ceil(target), targetSizeFloat=target
        )
        return pb.GetMetricSpecResponse(metricSpecs=[spec])

    def _metrics(self, trigger: Trigger) -> pb.GetMetricsResponse:
        record = self._record(trigger.service)
        number = _told(answers.value(trigger, record))
        one = pb.MetricValue(
            metricName=trigger.metric, metricValue=ceil(number), metricValueFloat=number
        )
        return pb.GetMetricsResponse(metricValues=[one])

    def _known(self, service: ServiceId) -> Record:
        records = self._loop.records.get(service)
        if not records:
            raise _Refused(grpc.StatusCode.NOT_FOUND, self._unknown(service))
        return records[-1]

    def _record(self, service: ServiceId) -> Record:
        record = self._known(service)
        age_s = self._now_s() - record.decision.at_s
        if age_s > self._stale_after_s:
            raise _Refused(
                grpc.StatusCode.UNAVAILABLE,
                f"{service}: the last decision is {age_s:.0f} s old; the controller's log says why",
            )
        return record

    def _unknown(self, service: ServiceId) -> str:
        """Those of the same namespace first: the others are rarely meant."""
        all_of_them = sorted(
            self._loop.records, key=lambda s: (s.namespace != service.namespace, str(s))
        )
        there = ", ".join(map(str, all_of_them[:NAMED_MOST])) or "none yet"
        more = f" and {len(all_of_them) - NAMED_MOST} more" if all_of_them[NAMED_MOST:] else ""
        return (
            f"service: Tidegate knows no {service}; there are: {there}{more}; name one in the "
            f"trigger's metadata, or annotate it with tidegate.dev/enabled"
        )

    async def _changes(
        self, trigger: Trigger, look: Callable[[Trigger], Answer]
    ) -> AsyncIterator[Answer]:
        """What `look` answers, now and whenever it changes.

        While nothing is known nothing is said, and what was said last holds: an error would make
        KEDA close the stream, and wait up to a minute before it opens the next.
        """
        told: Answer | None = None
        while not self._closed:
            answer = told
            try:
                answer = look(trigger)
            except _Refused as refused:
                if refused.code not in PASSING:
                    raise
            # Not before it is known that there is such a service: a name costs nothing.
            news = self._news.setdefault(trigger.service, asyncio.Event())
            if answer is not None and answer != told:
                told = answer
                yield answer
            await news.wait()


class _Status:
    """Turns what a trigger got wrong, or could not be told, into the status of its call."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: object, trouble: BaseException | None, trace: object) -> None:
        if isinstance(trouble, BadInput):
            await self._abort(grpc.StatusCode.INVALID_ARGUMENT, str(trouble))
        if isinstance(trouble, _Refused):
            await self._abort(trouble.code, trouble.why)

    async def _abort(self, code: grpc.StatusCode, why: str) -> None:
        await self._context.abort(code, why[:WORDS_MOST])


def handlers(scaler: ExternalScaler) -> "grpc.GenericRpcHandler[Any, Any]":
    """The service as gRPC's server takes it.

    Written by hand: the file that grpc_tools would make refuses any gRPC older than itself.
    """

    def unary(call: Callable[..., Awaitable[Any]], request: Any, response: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            call,
            request_deserializer=request.FromString,
            response_serializer=response.SerializeToString,
        )

    def stream(call: Callable[..., AsyncIterator[Any]], response: Any) -> Any:
        return grpc.unary_stream_rpc_method_handler(
            call,
            request_deserializer=pb.ScaledObjectRef.FromString,
            response_serializer=response.SerializeToString,
        )

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "IsActive": unary(scaler.is_active, pb.ScaledObjectRef, pb.IsActiveResponse),
            "StreamIsActive": stream(scaler.stream_is_active, pb.IsActiveResponse),
            "GetMetricSpec": unary(
                scaler.get_metric_spec, pb.ScaledObjectRef, pb.GetMetricSpecResponse
            ),
            "StreamMetricSpec": stream(scaler.stream_metric_spec, pb.GetMetricSpecResponse),
            "GetMetrics": unary(scaler.get_metrics, pb.GetMetricsRequest, pb.GetMetricsResponse),
        },
    )


def _trigger(asked: pb.ScaledObjectRef) -> Trigger:
    return read(dict(asked.scalerMetadata), namespace=asked.namespace, name=asked.name)


def _told(said: Answer | NoAnswer) -> Answer:
    if isinstance(said, NoAnswer):
        raise _Refused(CODES[said.because], said.why)
    return said
