# SPDX-License-Identifier: Apache-2.0
"""Measurements that compare Tidegate with its rivals, on the machine where they are run.

Read first: `workloads.py` (what is sent), then `measure.py` (in which order), then `report.py`
(what the figures mean). `backend.py` and `client.py` are the two ends of the wire, each a process
of its own. `tidegate_proxy.py` and `proxies.py` start what stands between them: the activator,
`go/main.go`, `aiohttp_proxy.py`.
"""
