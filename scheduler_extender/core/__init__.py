# SPDX-License-Identifier: Apache-2.0
"""Which pod fits on which GPUs, and where it leaves the fewest fragments. Pure; numpy arrays."""
