# SPDX-License-Identifier: Apache-2.0
"""The table of model formats, and what an engine must offer. Importing this package imports no
engine.

To add an engine: one module beside this one with `load(path, options) -> Engine`, and a row in
FORMATS.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # numpy is not needed to read a command line
    from serving.core.tensors import Tensors, TensorSpec


@dataclass(frozen=True, slots=True)
class Format:
    """How files with one suffix become models.

    `module` has the function `load`; `needs` are the modules that reading a file takes;
    `runs_code`: reading such a file runs whatever code its author put in, so it must be asked for.
    """

    module: str
    needs: tuple[str, ...]
    runs_code: bool = False


FORMATS: Mapping[str, Format] = {
    ".onnx": Format("serving.engines.onnx", ("onnxruntime",)),
    ".skops": Format("serving.engines.sklearn", ("sklearn", "skops.io")),
    ".joblib": Format("serving.engines.sklearn", ("sklearn", "joblib"), runs_code=True),
    ".pkl": Format("serving.engines.sklearn", ("sklearn", "joblib"), runs_code=True),
}


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """`threads`: computing threads for one batch. `trusted_types`: see the sklearn engine."""

    threads: int = 1
    trusted_types: tuple[str, ...] = ()


class Engine(Protocol):
    """One loaded model. `infer` is called from several threads at once.

    `by_row`: every input and output has one entry a row in its first dimension, and a row's answer
    does not depend on its neighbours; only then are requests joined. `default_outputs` are given to
    a request that names none.
    """

    platform: str
    inputs: "Sequence[TensorSpec]"
    outputs: "Sequence[TensorSpec]"
    default_outputs: tuple[str, ...]
    by_row: bool

    def infer(self, inputs: "Tensors", outputs: Sequence[str]) -> "Tensors":
        """The named outputs. Raises BadRequest for what the client sent, else InferenceFailed."""
        ...


class EngineModule(Protocol):
    """What a module named in FORMATS offers."""

    def load(self, path: Path, options: LoadOptions) -> Engine:
        """Read the file. Raises ModelNotLoaded with the reason and the remedy."""
        ...
