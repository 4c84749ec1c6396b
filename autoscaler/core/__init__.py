# SPDX-License-Identifier: Apache-2.0
"""Pure decisions: no clock, I/O, log, thread, await, random or client in here.

Read first: `signals.py` (what was seen), `policy.py` (what is wanted), `decide.py` (the recipe),
`stabilize.py` (how fast), `zero.py` (sleep and wake). Every function is handed `now_s` and returns
new values.
"""
