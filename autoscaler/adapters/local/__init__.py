# SPDX-License-Identifier: Apache-2.0
"""Worker processes of one machine as the replicas of services.

Read first: `life.py` (the states of a replica, as a table), `replicas.py` (what moves one through
them), `cluster.py` (all of them, as `ports.Cluster` and `ports.RouteTable`). Underneath are
`process.py` (one child process) and `guard.py` (no orphan, however the controller ends);
`kept.py` keeps a process alive that is no replica.
"""
