# SPDX-License-Identifier: Apache-2.0
"""From signals to a wish: one file per policy, each `propose(...) -> Proposal`.

Read first: `target.py`. A new policy is a file here and a row in `POLICIES` of `decide.py`.
"""
