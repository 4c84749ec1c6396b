# SPDX-License-Identifier: Apache-2.0
"""What model servers say of themselves in `/metrics`: running, waiting, arrived, tokens.

Read first: `table.py` (which sample tells what, for each engine), then `page.py` (one replica's
page), `growth.py` (totals that never fall). `asking.py` asks during a tick (one machine);
`scraper.py` asks beside the ticks (a cluster).
"""

from autoscaler.adapters.engines.asking import EngineMetrics

__all__ = ["EngineMetrics"]
