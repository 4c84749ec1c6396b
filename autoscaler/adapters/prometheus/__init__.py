# SPDX-License-Identifier: Apache-2.0
"""Signals from a Prometheus that already knows the cluster; also from Thanos or Mimir.

Read `source.py` first: what is told of a service. `queries.py`: what is asked, and what an answer
says of each pod; `targets.py`: the same for users' own queries. `client.py`: how it is asked.
"""

from autoscaler.adapters.prometheus.client import PrometheusClient
from autoscaler.adapters.prometheus.source import PrometheusSignalSource

__all__ = ["PrometheusClient", "PrometheusSignalSource"]
