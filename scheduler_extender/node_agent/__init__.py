# SPDX-License-Identifier: Apache-2.0
"""What runs on each node with GPUs and says which it has. Read first: `agent.py`, `nvml.py`."""
