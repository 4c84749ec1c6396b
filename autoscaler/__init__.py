# SPDX-License-Identifier: Apache-2.0
"""The controller: observe, decide, act, explain.

Read first: `core/decide.py` (what a decision is), then `loop.py` (one tick), then `ports.py`
(what the loop needs of the world). `app/` wires the pieces; `contract.py` is what users write.
"""
