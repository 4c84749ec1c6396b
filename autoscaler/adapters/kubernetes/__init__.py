# SPDX-License-Identifier: Apache-2.0
"""Kubernetes: services are what carries our annotations, replicas are pods.

Read first: `api.py` (how the API server is asked), then `informer.py` (how it tells us of changes).
`resources.py` names what we speak of. `election.py`: who of several controllers acts. `events.py`
and `annotations.py`: what `kubectl describe` shows. `memory.py`: what outlives the controller.
"""
