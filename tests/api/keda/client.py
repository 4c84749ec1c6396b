# SPDX-License-Identifier: Apache-2.0
"""A client of KEDA's interface that is made of the `.proto` alone, each time anew.

It shares no code with the scaler: its messages live in a pool of their own.
"""

import tempfile
from collections.abc import AsyncIterable, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

PROTO = Path(__file__).parents[3] / "autoscaler" / "api" / "keda" / "externalscaler.proto"
PACKAGE = "externalscaler"
WITHIN_S = 10.0


def compiled() -> descriptor_pb2.FileDescriptorProto:
    """The interface, as protoc reads it now."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        code = protoc.main(["", f"-I{PROTO.parent}", f"--descriptor_set_out={out}", str(PROTO)])
        assert code == 0
        files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    return files.file[0]


class Client:
    """Calls by name; messages are had by name too."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        pool = descriptor_pool.DescriptorPool()
        pool.Add(compiled())
        self._pool = pool
        self._service = pool.FindServiceByName(f"{PACKAGE}.ExternalScaler")
        self._channel = channel

    def message(self, name: str, /, **fields: Any) -> Any:
        of = self._pool.FindMessageTypeByName(f"{PACKAGE}.{name}")
        return message_factory.GetMessageClass(of)(**fields)

    def ref(self, name: str, namespace: str, metadata: Mapping[str, str]) -> Any:
        return self.message(
            "ScaledObjectRef", name=name, namespace=namespace, scalerMetadata=dict(metadata)
        )

    async def ask(self, method: str, request: Any) -> Any:
        """One answer. Raises `grpc.aio.AioRpcError`."""
        return await self._of(method, self._channel.unary_unary)(request, timeout=WITHIN_S)

    def listen(self, method: str, request: Any) -> AsyncIterable[Any]:
        """A stream of answers."""
        call: AsyncIterable[Any] = self._of(method, self._channel.unary_stream)(request)
        return call

    def _of(self, method: str, kind: Callable[..., Any]) -> Any:
        output = self._service.methods_by_name[method].output_type
        return kind(
            f"/{PACKAGE}.ExternalScaler/{method}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(output).FromString,
        )
