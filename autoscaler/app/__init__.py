# SPDX-License-Identifier: Apache-2.0
"""Wires processes together and runs them; decides nothing.

Read first: `run.py` and `activator.py` are the verbs; each platform's controller is a file of its
own (`local.py`); `ticking.py` and `serving.py` are what platforms share.
"""
