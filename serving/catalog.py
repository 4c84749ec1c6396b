# SPDX-License-Identifier: Apache-2.0
"""Only this file turns `NAME=PATH` into a file and the engine for it, without reading the file."""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from serving.engines import FORMATS, Format
from serving.errors import BadInput

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_RESERVED = frozenset({"stats"})  # /v2/models/stats is a path of the protocol


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One model to serve: `path` is the file itself, `format` the row of FORMATS for its suffix."""

    name: str
    path: Path
    format: Format


def model_file(text: str, *, unsafe_pickle: bool) -> ModelFile:
    """Find the file that `NAME=PATH` names. Raises BadInput, each problem with its remedy."""
    name, equals, given = text.partition("=")
    if not equals or not given:
        raise BadInput(
            f"--model: {text!r} is not NAME=PATH; for example --model iris=/models/iris.onnx"
        )
    if _NAME.fullmatch(name) is None or name in _RESERVED:
        raise BadInput(
            f"--model: {name!r} is no model name; letters, digits, '.', '_', '-', at most 128, "
            "not 'stats'"
        )
    path = _the_file(name, Path(given))
    fmt = FORMATS[path.suffix]
    if fmt.runs_code and not unsafe_pickle:
        raise BadInput(
            f"--model {name}: {path} is a pickle, and reading one runs whatever code it holds; "
            "save the model with skops.io.dump, or add --unsafe-pickle if you trust its author"
        )
    packages = [module.partition(".")[0] for module in fmt.needs]
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise BadInput(
            f"--model {name}: {path.suffix} files need {' and '.join(missing)}, not installed; "
            "pip install 'tidegate[worker]'"
        )
    return ModelFile(name, path, fmt)


def _the_file(name: str, path: Path) -> Path:
    permitted = " ".join(FORMATS)
    if path.is_file():
        if path.suffix in FORMATS:
            return path
        raise BadInput(f"--model {name}: {path} has no known file type; permitted are {permitted}")
    if not path.is_dir():
        raise BadInput(f"--model {name}: there is no file or directory {path}")
    held = sorted(p for p in path.iterdir() if p.is_file() and p.suffix in FORMATS)
    if len(held) == 1:
        return held[0]
    found = f"holds {', '.join(p.name for p in held)}" if held else "holds no model file"
    raise BadInput(
        f"--model {name}: {path} {found}; a directory must hold exactly one of {permitted}"
    )
