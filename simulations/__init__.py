# SPDX-License-Identifier: Apache-2.0
"""The simulator: the shipped loop and core in virtual time, on simulated ports.

Read first: `replay.py` (one run), `world.py` (the ports and a request's way), `replicas.py` (the
model of a replica), `events.py` and `clock.py` (virtual time), `invariants.py` (what every run is
checked for), `report.py` (what a run gives back), `traces/` (where requests come from).
"""
