# SPDX-License-Identifier: Apache-2.0
"""The API server that misbehaves on request, for those who look for exporters."""

from tests.adapters.kubernetes.conftest import api, server

__all__ = ["api", "server"]
