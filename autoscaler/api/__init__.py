# SPDX-License-Identifier: Apache-2.0
"""What Tidegate says of itself over HTTP: `status.py` (services and decisions), `metrics.py`."""
