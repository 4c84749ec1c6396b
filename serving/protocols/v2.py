# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol V2 over HTTP: health, metadata, repository index, infer.

Tensors travel as JSON or, with `Inference-Header-Content-Length`, as bytes behind the JSON; a value
of 0 says that the whole body is the model's only input, and the answer comes in bytes. Source:
kserve/open-inference-protocol `inference_rest`, Triton `extension_binary_data`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from math import prod

import orjson

from serving.core.tensors import Array, Tensors, TensorSpec
from serving.errors import BadRequest, NotFound
from serving.protocols.elements import (
    datatype_name,
    dtype_of,
    from_binary,
    from_json,
    raw_shape,
    to_binary,
    to_json_value,
)
from serving.protocols.http import Answer, Request, json_answer, to_json
from serving.worker import VERSION, State, Worker

HEADER = b"inference-header-content-length"
_MAX_DIMENSIONS = 32
_UNSUPPORTED = ("shared_memory_region", "classification")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output that the client asks for. `binary` None: as the request says."""

    name: str
    binary: bool | None


@dataclass(frozen=True, slots=True)
class InferRequest:
    """An infer request, decoded. `outputs` None: the model's default ones."""

    id: str | None
    inputs: Tensors
    outputs: tuple[Wanted, ...] | None
    binary: bool


async def live(_worker: Worker, _request: Request) -> Answer:
    """Whether the process answers at all."""
    return json_answer({"live": True})


async def ready(worker: Worker, _request: Request) -> Answer:
    """Whether requests should be sent here: all models loaded, and not draining."""
    return json_answer({"ready": worker.ready}, status=200 if worker.ready else 503)


async def server(_worker: Worker, _request: Request) -> Answer:
    """Who is speaking."""
    try:
        number = version("tidegate")
    except PackageNotFoundError:  # run from a source tree
        number = "0"
    extensions = ["binary_tensor_data", "model_repository", "statistics"]
    return json_answer({"name": "tidegate", "version": number, "extensions": extensions})


async def models(worker: Worker, _request: Request) -> Answer:
    """The names of all models, as KServe's own server lists them."""
    return json_answer({"models": worker.names})


async def model(worker: Worker, _request: Request, name: str, version_: str = VERSION) -> Answer:
    """The metadata of one model."""
    _check_version(worker, name, version_)
    engine = worker.lane(name).engine
    return json_answer(
        {
            "name": name,
            "versions": [VERSION],
            "platform": engine.platform,
            "inputs": [_described(s) for s in engine.inputs],
            "outputs": [_described(s) for s in engine.outputs],
        }
    )


async def model_ready(
    worker: Worker, _request: Request, name: str, version_: str = VERSION
) -> Answer:
    """Whether this model should be sent requests here."""
    _check_version(worker, name, version_)
    is_ready = worker.state(name) is State.READY
    return json_answer({"name": name, "ready": is_ready}, status=200 if is_ready else 503)


async def index(worker: Worker, request: Request) -> Answer:
    """All models with their state; `{"ready": true}` leaves out those that are not."""
    asked = _object(request.body, "the repository index request") if request.body.strip() else {}
    rows = [
        {"name": name, "version": VERSION, "state": worker.state(name).value, "reason": ""}
        for name in worker.names
        if worker.state(name) is State.READY or asked.get("ready") is not True
    ]
    return json_answer(rows)


async def stats(
    worker: Worker, _request: Request, name: str = "", version_: str = VERSION
) -> Answer:
    """Counts and summed nanoseconds of one model, or of all."""
    if name:
        _check_version(worker, name, version_)
    rows = [_stats(worker, n) for n in ([name] if name else worker.names)]
    return json_answer({"model_stats": rows})


def _stats(worker: Worker, name: str) -> Mapping[str, object]:
    counts = worker.counts(name)

    def timed(count: int, total_s: float) -> Mapping[str, int]:
        return {"count": count, "ns": int(total_s * 1e9)}

    failed_s = counts.request_s.total - counts.answered_s
    return {
        "name": name,
        "version": VERSION,
        "inference_count": counts.inferences,
        "execution_count": counts.executions,
        "inference_stats": {
            "success": timed(counts.succeeded, counts.answered_s),
            "fail": timed(sum(counts.failed.values()), failed_s),
            "queue": timed(sum(counts.queue_s.counts), counts.queue_s.total),
            "compute_infer": timed(counts.executions, counts.inference_s.total),
        },
    }


async def infer(worker: Worker, request: Request, name: str, version_: str = VERSION) -> Answer:
    """Run one request."""
    _check_version(worker, name, version_)
    decoded = decode(request.body, request.headers.get(HEADER), worker.lane(name).engine.inputs)
    wanted = None if decoded.outputs is None else tuple(o.name for o in decoded.outputs)
    outputs = await request.wait_for(worker.submit(name, decoded.inputs, wanted))
    return encode(name, decoded, outputs)


def _check_version(worker: Worker, name: str, version_: str) -> None:
    worker.counts(name)
    if version_ != VERSION:
        raise NotFound(f"model {name!r} has no version {version_!r}; it has version {VERSION}")


def _described(spec: TensorSpec) -> Mapping[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


# --- from the wire


def decode(body: bytes, header: bytes | None, specs: Sequence[TensorSpec]) -> InferRequest:
    """The bytes of an infer request as tensors. Raises BadRequest with what is wrong where."""
    length = _header_length(header, len(body))
    if length == 0:
        return _raw(body, specs)
    request = _object(body[:length], "the infer request")
    parameters = _parameters(request, "the request")
    name = request.get("id")
    if name is not None and not isinstance(name, str):
        raise BadRequest("the id of the request must be a string")
    return InferRequest(
        id=name,
        inputs=_inputs(request.get("inputs"), memoryview(body)[length:]),
        outputs=_wanted(request.get("outputs")),
        binary=_flag(parameters, "binary_data_output", "the request") or False,
    )


def _header_length(header: bytes | None, size: int) -> int:
    """How many bytes of the body are JSON; all of them without the header."""
    if header is None:
        if size == 0:
            raise BadRequest('the body is empty; an infer request has "inputs"')
        return size
    text = header.decode("latin-1").strip()
    if not (text.isascii() and text.isdigit()) or len(text) > 18 or int(text) > size:
        raise BadRequest(
            f"Inference-Header-Content-Length is {text!r}; it must be a number from 0 to the body's"
            f" {size} bytes"
        )
    return int(text)


def _raw(body: bytes, specs: Sequence[TensorSpec]) -> InferRequest:
    if len(specs) != 1:
        raise BadRequest(
            f"a raw body needs a model with one input, this one has {len(specs)}; send JSON"
        )
    spec = specs[0]
    shape = raw_shape(spec, len(body))
    prefix = len(body).to_bytes(4, "little") if spec.datatype == "BYTES" else b""
    tensor = from_binary(spec.name, memoryview(prefix + body), datatype=spec.datatype, shape=shape)
    return InferRequest(None, {spec.name: tensor}, None, binary=True)


def _inputs(listed: object, tail: memoryview) -> Tensors:
    inputs: dict[str, Array] = {}
    at = 0
    for tensor in _named(listed, "inputs"):
        name = tensor["name"]
        if name in inputs:
            raise BadRequest(f"input {name!r} is given twice")
        inputs[name], used = _input(name, tensor, tail[at:])
        at += used
    if not inputs:
        raise BadRequest('the infer request has no "inputs"')
    if at != len(tail):
        raise BadRequest(
            f"{len(tail)} bytes follow the JSON, the inputs' binary_data_size add up to {at}"
        )
    return inputs


def _input(name: str, tensor: Mapping[str, object], tail: memoryview) -> tuple[Array, int]:
    """One input, and how many bytes of the tail it used."""
    datatype = tensor.get("datatype")
    dtype_of(name, datatype)
    shape = _shape(name, tensor.get("shape"))
    size = _parameters(tensor, f"input {name!r}").get("binary_data_size")
    if size is None:
        if "data" not in tensor:
            raise BadRequest(f"input {name!r} has neither data nor the parameter binary_data_size")
        return from_json(name, tensor["data"], datatype=str(datatype), shape=shape), 0
    if "data" in tensor:
        raise BadRequest(f"input {name!r} has both data and the parameter binary_data_size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(tail):
        raise BadRequest(
            f"input {name!r}: binary_data_size is {size!r}, {len(tail)} bytes are left for it"
        )
    return from_binary(name, tail[:size], datatype=str(datatype), shape=shape), size


def _shape(name: str, shape: object) -> tuple[int, ...]:
    if isinstance(shape, list) and len(shape) <= _MAX_DIMENSIONS:
        dims = tuple(d for d in shape if isinstance(d, int) and not isinstance(d, bool) and d >= 0)
        if len(dims) == len(shape) and prod(dims) < 2**48:
            return dims
    raise BadRequest(f"the shape of tensor {name!r} must be a list of sizes, got {shape!r}")


def _wanted(listed: object) -> tuple[Wanted, ...] | None:
    if listed is None:
        return None
    wanted: dict[str, Wanted] = {}
    for output in _named(listed, "outputs"):
        name = output["name"]
        if name in wanted:
            raise BadRequest(f"output {name!r} is asked for twice")
        where = f"output {name!r}"
        wanted[name] = Wanted(name, _flag(_parameters(output, where), "binary_data", where))
    return tuple(wanted.values()) or None


def _named(listed: object, what: str) -> list[Mapping[str, str]]:
    if listed is None:
        return []
    if not isinstance(listed, list):
        raise BadRequest(f'"{what}" must be a list')
    for item in listed:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise BadRequest(f'each of "{what}" must be an object with a "name"')
    return listed


def _parameters(of: Mapping[str, object], where: str) -> Mapping[str, object]:
    found = of.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadRequest(f"the parameters of {where} must be an object")
    for name in _UNSUPPORTED:
        if name in found:
            raise BadRequest(f"{where}: the parameter {name} is not supported by this worker")
    return found


def _flag(parameters: Mapping[str, object], name: str, where: str) -> bool | None:
    value = parameters.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise BadRequest(f"{where}: the parameter {name} must be true or false, got {value!r}")


def _object(body: bytes, what: str) -> Mapping[str, object]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as e:
        raise BadRequest(f"{what} is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise BadRequest(f"{what} must be a JSON object")
    return value


# --- to the wire


def encode(model_name: str, request: InferRequest, outputs: Tensors) -> Answer:
    """The answer in the form that the request asked for, binary tensors behind the JSON."""
    binary = {o.name: o.binary for o in request.outputs or ()}
    listed: list[Mapping[str, object]] = []
    tail: list[bytes] = []
    for name, array in outputs.items():
        row = {"name": name, "datatype": datatype_name(name, array), "shape": list(array.shape)}
        chosen = binary.get(name)
        if request.binary if chosen is None else chosen:
            tail.append(to_binary(array))
            listed.append({**row, "parameters": {"binary_data_size": len(tail[-1])}})
        else:
            listed.append({**row, "data": to_json_value(name, array.reshape(-1))})
    head: dict[str, object] = {"model_name": model_name, "model_version": VERSION}
    if request.id is not None:
        head["id"] = request.id
    json = to_json({**head, "outputs": listed})
    if not tail:
        return Answer(body=json)
    return Answer(
        body=b"".join([json, *tail]),
        content_type="application/octet-stream",
        headers=((HEADER, str(len(json)).encode()),),
    )
