# SPDX-License-Identifier: Apache-2.0
"""Only this file touches scikit-learn and skops.

`.skops` files are read by skops, which builds only types it knows to be harmless; any other type
has to be trusted by name. `.joblib` and `.pkl` files run code while they are read; the command line
lets them through only with --unsafe-pickle.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from serving.core.tensors import Array, Tensors, TensorSpec, datatype_of
from serving.engines import LoadOptions
from serving.errors import BadRequest, ModelNotLoaded

PREDICT, PREDICT_PROBA = "predict", "predict_proba"


def load(path: Path, options: LoadOptions) -> "SklearnEngine":
    """Read an estimator that has `predict`."""
    read = _read_skops if path.suffix == ".skops" else _read_joblib
    estimator = read(path, options)
    if not callable(getattr(estimator, "predict", None)):
        raise ModelNotLoaded(
            f"{path} holds a {type(estimator).__name__}, which has no predict(); "
            "save an estimator or a Pipeline that ends in one"
        )
    return SklearnEngine(estimator)


def _read_skops(path: Path, options: LoadOptions) -> Any:
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        return skops.io.load(path, trusted=list(options.trusted_types))
    except UntrustedTypesFoundException as e:
        found = set(skops.io.get_untrusted_types(file=path)) - set(options.trusted_types)
        flags = " ".join(f"--trust {name}" for name in sorted(found))
        raise ModelNotLoaded(
            f"{path} holds types that are not known to be harmless: {', '.join(sorted(found))}; "
            f"if you trust the file's author, add {flags}"
        ) from e
    except (BadZipFile, KeyError, ValueError, TypeError, AttributeError, ImportError) as e:
        raise ModelNotLoaded(
            f"{path} is not a skops file that this scikit-learn can read "
            f"({type(e).__name__}: {e}); write it anew with skops.io.dump"
        ) from e


def _read_joblib(path: Path, _options: LoadOptions) -> Any:
    import joblib

    try:
        return joblib.load(path)
    except (
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        ImportError,
        EOFError,
        IndexError,
    ) as e:
        raise ModelNotLoaded(
            f"{path} is not a pickle that this scikit-learn can read ({type(e).__name__}: {e}); "
            "write it anew with the versions installed here"
        ) from e


class SklearnEngine:
    """An estimator as a model: one input of any name, the outputs `predict`, `predict_proba`."""

    platform = "sklearn"
    by_row = True
    default_outputs: tuple[str, ...] = (PREDICT,)

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator
        features = getattr(estimator, "n_features_in_", None)
        shape = (-1,) if features is None else (-1, int(features))
        self.inputs = (TensorSpec("input-0", "FP64", shape, lenient=True),)
        self.outputs = tuple(_outputs(estimator))
        # Clients send rows without names, also to what was fitted on a frame not worth a line a
        # worker.
        warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)

    def infer(self, inputs: Tensors, outputs: Sequence[str]) -> Tensors:
        """Call the methods that the outputs are named for."""
        (rows,) = inputs.values()
        try:
            features = _text(rows) if rows.dtype.kind == "O" else rows
            return {name: np.asarray(getattr(self._estimator, name)(features)) for name in outputs}
        except (ValueError, TypeError) as e:
            line = " ".join(str(e).split())
            raise BadRequest(
                f"{type(self._estimator).__name__} refuses the instances: {line}"
            ) from e


def _outputs(estimator: Any) -> list[TensorSpec]:
    classes = getattr(estimator, "classes_", None)
    if isinstance(classes, list):
        datatype = datatype_of(np.asarray(classes[0]).dtype) or "BYTES"
        return [TensorSpec(PREDICT, datatype, (-1, len(classes)))]
    if classes is None:
        targets = int(getattr(estimator, "n_outputs_", 1))
        return [TensorSpec(PREDICT, "FP64", (-1,) if targets == 1 else (-1, targets))]
    datatype = datatype_of(np.asarray(classes).dtype) or "BYTES"
    specs = [TensorSpec(PREDICT, datatype, (-1,))]
    if hasattr(estimator, "predict_proba"):
        specs.append(TensorSpec(PREDICT_PROBA, "FP64", (-1, len(classes))))
    return specs


def _text(rows: Array) -> Array:
    """BYTES elements as str, others as they are (rows of text and numbers mixed)."""
    out = np.empty(rows.shape, dtype=object)
    out.reshape(-1)[:] = [e.decode() if isinstance(e, bytes) else e for e in rows.flat]
    return out
