# SPDX-License-Identifier: Apache-2.0
"""Packs pods onto GPUs: a kube-scheduler extender.

Read first: `core/fit.py`, `core/score.py`.
"""
