# SPDX-License-Identifier: Apache-2.0
"""The real Kubernetes behind `ports.py`. Read first: `cluster.py`, then `api.py`."""
