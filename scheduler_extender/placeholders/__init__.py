# SPDX-License-Identifier: Apache-2.0
"""Nodes from cluster autoscalers, for pods that fit nowhere."""
