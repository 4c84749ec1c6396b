# SPDX-License-Identifier: Apache-2.0
"""Mixed nodes: which of their cards are ours, and how they become so."""
