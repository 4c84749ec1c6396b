# SPDX-License-Identifier: Apache-2.0
"""The worker: serves ONNX and scikit-learn models over HTTP, `tidegate worker`.

Read first: `settings.py` (what a user can choose), `lane.py` (how a request waits, joins a batch
and runs), `core/batching.py` (the rule of the batches), then `app.py` (bytes in, bytes out, and the
end by SIGTERM). `engines/__init__.py` is the table of model formats; `protocols/` speaks V1 and V2.

The start of a worker is what scaling from zero waits for: `cli.py` imports nothing heavy, and only
the engine that a model needs is imported, after the socket listens.
"""
