# SPDX-License-Identifier: Apache-2.0
"""Where simulated requests come from: one file per trace format.

Read first: `arrivals.py` (what every format becomes), `formats.py` (the table of formats: a new one
is one file and one row), `shape.py` (cutting, compressing and scaling), `synthetic.py` (made, not
recorded).
"""
