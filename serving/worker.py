# SPDX-License-Identifier: Apache-2.0
"""The models of one process: loading them, and the state that health answers from."""

import asyncio
import enum
import gc
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

from serving.catalog import ModelFile
from serving.core.share import no_room
from serving.core.tensors import Tensors, TensorSpec, misfit
from serving.engines import Engine, EngineModule, LoadOptions
from serving.errors import BadRequest, ModelNotLoaded, NotFound, NotReady
from serving.lane import Lane
from serving.log import event
from serving.settings import Settings
from serving.telemetry import ModelCounts, Telemetry

VERSION = "1"  # a worker serves one version of each model


class State(enum.Enum):
    """Where a model is; the values are the words of the repository index."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"  # still answers, and should be sent nothing any more


@dataclass(frozen=True, slots=True)
class Loaded:
    """A fresh engine and what loading it took. `size_bytes`: see `tidegate_worker_model_bytes`."""

    engine: Engine
    took_s: float
    size_bytes: int


class Worker:
    """Models by name, each LOADING until its lane is open; draining makes all UNLOADING."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.telemetry = Telemetry({m.name: ModelCounts() for m in settings.models})
        self.draining = False
        self._lanes: dict[str, Lane] = {}
        self._pool = ThreadPoolExecutor(
            settings.concurrency * max(1, len(settings.models)), thread_name_prefix="inference"
        )

    @property
    def names(self) -> list[str]:
        """All models, in the order of the command line."""
        return list(self.telemetry.models)

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here: all models are loaded and no end is in sight."""
        return not self.draining and len(self._lanes) == len(self.telemetry.models)

    @property
    def in_flight(self) -> int:
        """Inference requests received and not yet answered."""
        return sum(m.in_flight for m in self.telemetry.models.values())

    def state(self, name: str) -> State:
        """The state of one model. Raises NotFound."""
        self.counts(name)
        if name not in self._lanes:
            return State.LOADING
        return State.UNLOADING if self.draining else State.READY

    def counts(self, name: str) -> ModelCounts:
        """The counts of one model. Raises NotFound."""
        if name not in self.telemetry.models:
            served = ", ".join(self.names)
            raise NotFound(f"unknown model {name!r}; this worker serves {served}")
        return self.telemetry.models[name]

    def lane(self, name: str) -> Lane:
        """The open lane of a model. Raises NotFound, NotReady."""
        if self.state(name) is State.LOADING:
            raise NotReady(f"model {name!r} is being loaded; retry after 1 s", after_s=1)
        return self._lanes[name]

    def submit(
        self, name: str, inputs: Tensors, outputs: tuple[str, ...] | None
    ) -> asyncio.Future[Tensors]:
        """Check a request against the model's metadata and queue it.

        `outputs` None: the default ones.
        """
        lane = self.lane(name)
        engine = lane.engine
        fitting = _fitting(engine, inputs, name)
        known = {o.name for o in engine.outputs}
        for output in outputs or ():
            if output not in known:
                raise BadRequest(
                    f"model {name!r} has no output {output!r}; it has {', '.join(sorted(known))}"
                )
        return lane.submit(fitting, outputs or engine.default_outputs)

    async def load_all(self) -> None:
        """Load one model after the other, off the event loop.

        Raises ModelNotLoaded for the first that fails.
        """
        loop = asyncio.get_running_loop()
        options = LoadOptions(self.settings.threads, self.settings.trusted_types)
        gc.disable()  # imports and models are garbage of no kind: a tenth of the time back
        try:
            for model in self.settings.models:
                self._fit(model, model.path.stat().st_size)
                loading = loop.run_in_executor(self._pool, _load, model, options)
                await asyncio.wait({loading})
                loaded = _result(model, loading)
                self._fit(model, loaded.size_bytes)
                self._open(model, loaded)
        finally:
            gc.enable()
        gc.freeze()

    def _fit(self, model: ModelFile, needs_bytes: int) -> None:
        """Raises ModelNotLoaded where the models would take more than the pod's share."""
        taken_bytes = sum(counts.loaded_bytes or 0 for counts in self.telemetry.models.values())
        limit_bytes = self.settings.memory_max_bytes
        if why := no_room(needs_bytes, taken_bytes=taken_bytes, limit_bytes=limit_bytes):
            raise ModelNotLoaded(f"model {model.name!r} does not load: {why}")

    def _open(self, model: ModelFile, loaded: Loaded) -> None:
        counts = self.telemetry.models[model.name]
        counts.load_s, counts.loaded_bytes = loaded.took_s, loaded.size_bytes
        self._lanes[model.name] = Lane(
            model.name, loaded.engine, settings=self.settings, pool=self._pool, counts=counts
        )
        event(
            "model loaded",
            model=model.name,
            path=str(model.path),
            engine=loaded.engine.platform,
            load_s=round(loaded.took_s, 3),
            model_bytes=loaded.size_bytes,
        )

    def close(self) -> None:
        """Take no more batches; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _fitting(engine: Engine, inputs: Tensors, model: str) -> Tensors:
    """The inputs under the model's own names. Raises BadRequest when they are not what it takes."""
    specs: Mapping[str, TensorSpec] = {s.name: s for s in engine.inputs}
    if len(engine.inputs) == 1 and len(inputs) == 1 and engine.inputs[0].lenient:
        inputs = {engine.inputs[0].name: next(iter(inputs.values()))}
    if inputs.keys() != specs.keys():
        raise BadRequest(
            f"model {model!r} takes the inputs {', '.join(specs)}, got {', '.join(inputs)}"
        )
    for name, tensor in inputs.items():
        why = misfit(specs[name], tensor)
        if why is not None:
            raise BadRequest(f"model {model!r}: {why}")
    return inputs


def _result(model: ModelFile, loading: asyncio.Future[Loaded]) -> Loaded:
    error = loading.exception()
    if error is None:
        return loading.result()
    if isinstance(error, ModelNotLoaded):
        raise ModelNotLoaded(f"model {model.name!r} does not load: {error}") from error
    raise ModelNotLoaded(
        f"model {model.name!r} does not load: reading {model.path} failed with "
        f"{type(error).__name__}: {error}"
    ) from error


def _load(model: ModelFile, options: LoadOptions) -> Loaded:
    """On a thread: import the engine, read the file, and see how much memory that took."""
    started_s = time.perf_counter()
    for needed in model.format.needs:
        import_module(needed)
    module = cast(EngineModule, import_module(model.format.module))
    before = resident_bytes()
    engine = module.load(model.path, options)
    grown = resident_bytes() - before
    took_s = time.perf_counter() - started_s
    return Loaded(engine, took_s, max(grown, model.path.stat().st_size))


def resident_bytes() -> int:
    """The process's resident memory;

    0 where there is no /proc (then a model counts as its file).
    """
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0
    import resource

    return int(statm.read_text().split()[1]) * resource.getpagesize()
