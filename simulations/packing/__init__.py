# SPDX-License-Identifier: Apache-2.0
"""Packs lists of pods onto lists of nodes with the extender's own core, beside known policies.

Read first: `protocol.py` (one run), `rivals.py` (what it is compared with), `lists.py` (the CSV),
`through.py` (the same run through the real verbs).
"""
