# SPDX-License-Identifier: Apache-2.0
"""KServe's V1 protocol: `{"instances": [...]}` in, `{"predictions": [...]}` out, always JSON.

A model with one input takes its rows as instances; one with several takes an object a row, with one
key an input. Likewise a model with one output answers rows, one with several answers objects.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import orjson

from serving.core.tensors import Array, Tensors, TensorSpec
from serving.errors import BadRequest
from serving.protocols.elements import from_json, to_json_value
from serving.protocols.http import Answer, Request, json_answer
from serving.worker import State, Worker


async def models(worker: Worker, _request: Request) -> Answer:
    """The names of all models."""
    return json_answer({"models": worker.names})


async def model(worker: Worker, _request: Request, name: str) -> Answer:
    """Whether one model should be sent requests here."""
    ready = worker.state(name) is State.READY
    return json_answer({"name": name, "ready": ready}, status=200 if ready else 503)


async def predict(worker: Worker, request: Request, name: str) -> Answer:
    """Run the instances of one request."""
    engine = worker.lane(name).engine
    inputs = decode(request.body, engine.inputs)
    outputs = await request.wait_for(worker.submit(name, inputs, None))
    return encode(outputs)


def decode(body: bytes, specs: Sequence[TensorSpec]) -> Tensors:
    """The instances as the model's inputs. Raises BadRequest."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as e:
        raise BadRequest(f"the predict request is not JSON: {e}") from e
    instances = value.get("instances") if isinstance(value, dict) else None
    if not isinstance(instances, list) or not instances:
        raise BadRequest('the predict request must be {"instances": [...]} with at least one')
    if len(specs) == 1 and not isinstance(instances[0], dict):
        return {specs[0].name: _column(specs[0], instances)}
    return {spec.name: _column(spec, _picked(spec.name, instances, specs)) for spec in specs}


def _picked(name: str, instances: list[object], specs: Sequence[TensorSpec]) -> list[object]:
    names = {spec.name for spec in specs}
    picked: list[object] = []
    for i, instance in enumerate(instances):
        if not isinstance(instance, dict) or instance.keys() != names:
            raise BadRequest(
                f"instance {i} must be an object with the model's inputs {', '.join(sorted(names))}"
            )
        picked.append(instance[name])
    return picked


def _column(spec: TensorSpec, rows: list[object]) -> Array:
    if spec.lenient and _has_text(rows):
        return _mixed(spec.name, rows)
    return from_json(spec.name, rows, datatype=spec.datatype, shape=None)


def _has_text(rows: list[object]) -> bool:
    """Whether the first row is text or holds some: a pipeline that encodes it by itself."""
    first = rows[0]
    return isinstance(first, str) or (
        isinstance(first, list) and any(isinstance(e, str) for e in first)
    )


def _mixed(name: str, rows: list[object]) -> Array:
    """Rows of text, or of text and numbers, as objects."""
    array = np.array(rows, dtype=object)
    if any(isinstance(e, list | dict) for e in array.flat):
        raise BadRequest(f"the instances for input {name!r} must be rows of equal length")
    return array


def encode(outputs: Tensors) -> Answer:
    """The outputs as predictions."""
    columns: Mapping[str, object] = {n: to_json_value(n, array) for n, array in outputs.items()}
    if len(columns) == 1:
        (predictions,) = columns.values()
        return json_answer({"predictions": predictions})
    lists = {n: list(c) if isinstance(c, np.ndarray | list) else [c] for n, c in columns.items()}
    if len({len(c) for c in lists.values()}) != 1:
        return json_answer({"predictions": columns})
    rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    return json_answer({"predictions": rows})
