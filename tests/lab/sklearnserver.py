# SPDX-License-Identifier: Apache-2.0
"""The image `kserve/sklearnserver`: `tidegate worker` behind the arguments that KServe gives.

Where --model_dir holds no model (nothing downloads one in the lab), an iris classifier is served,
trained once and kept in --cache.
"""

import argparse
import os
import sys
from pathlib import Path

FORMATS = (".onnx", ".skops", ".joblib", ".pkl")


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--model_name", default="model")
    parser.add_argument("--model_dir", type=Path, default=Path("/mnt/models"))
    parser.add_argument("--http_port", default="8080")
    # Not KServe's: a server that is slow on purpose, by making every request wait for others.
    parser.add_argument("--queue_delay", default="0s")
    return parser.parse_known_args()


def has_model(folder: Path) -> bool:
    return folder.is_dir() and any(one.suffix in FORMATS for one in folder.iterdir())


def iris(cache: Path) -> Path:
    """The classifier's file; several servers may train it at once, one of them wins."""
    path = cache / "iris.skops"
    if not path.exists():
        import skops.io
        from sklearn.datasets import load_iris
        from sklearn.svm import SVC

        rows, labels = load_iris(return_X_y=True)
        fresh = cache / f"iris.{os.getpid()}.skops"
        skops.io.dump(SVC(gamma=0.1).fit(rows, labels), fresh)
        fresh.rename(path)
    return path


def main() -> None:
    args, _ignored = arguments()
    model = args.model_dir if has_model(args.model_dir) else iris(args.cache)
    # As KServe's own servers do: its TCP probe would find a port that is open too early ready.
    worker = ("-m", "autoscaler.cli", "worker", "--unsafe-pickle", "--listen-late")
    listen = ("--host", os.environ["POD_IP"], "--port", args.http_port)
    slow = ("--max-queue-delay", args.queue_delay)
    command = (sys.executable, *worker, *listen, *slow, "--model", f"{args.model_name}={model}")
    os.execv(sys.executable, command)  # noqa: S606  our own worker


if __name__ == "__main__":
    main()
