# SPDX-License-Identifier: Apache-2.0
"""The worker's rules, pure: no clock, no thread, no I/O; time is handed in and new values come out.

Read first: `batching.py` (which waiting requests run together), `admission.py` (which may wait at
all), `tensors.py` (what a tensor is called and whether it fits a model).
"""
