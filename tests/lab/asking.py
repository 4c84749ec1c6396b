# SPDX-License-Identifier: Apache-2.0
"""Single questions to the lab's programs over HTTP, while it starts and when tests disturb it."""

import json
import ssl
import urllib.request
from collections.abc import Mapping
from typing import Any

from tests.lab.access import ADMIN

_PATIENCE_S = 5.0

# The components sign their health ports' certificates themselves.
_UNCHECKED = ssl.create_default_context()
_UNCHECKED.check_hostname, _UNCHECKED.verify_mode = False, ssl.CERT_NONE


def answers(url: str) -> bool:
    """Whether it answers, with a good status."""
    try:
        _open(url)
    except OSError:  # URLError and HTTPError are OSErrors
        return False
    return True


def text(url: str) -> str:
    """Raises `OSError`."""
    return _open(url).decode()


def fetch(url: str) -> dict[str, Any]:
    """What the administrator gets. Raises `OSError`."""
    found: dict[str, Any] = json.loads(_open(url))
    return found


def post(url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Raises `OSError`."""
    said: dict[str, Any] = json.loads(_open(url, json.dumps(body).encode()))
    return said


def _open(url: str, body: bytes | None = None) -> bytes:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=_PATIENCE_S, context=_UNCHECKED) as answer:  # noqa: S310
        said: bytes = answer.read()
        return said
