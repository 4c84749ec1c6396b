# SPDX-License-Identifier: Apache-2.0
"""How fast the extender is on this machine. Read first: `measure.py`; `cli.py` is the command."""
