# SPDX-License-Identifier: Apache-2.0
"""Pods as they are created: made ready for the extender, or refused. Read first: `mutation.py`."""
