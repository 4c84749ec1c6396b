# SPDX-License-Identifier: Apache-2.0
"""One technology a file, each behind a protocol of `ports.py`; nothing here decides a count.

Read first: `local/` (processes of one machine as replicas), then `engines/` (what model servers
say of themselves), `prometheus/` (what one says that watches them), `memory.py` (what outlives the
controller), `activators.py` (routes down, demand up).
"""
