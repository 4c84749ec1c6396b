# SPDX-License-Identifier: Apache-2.0
"""An endpoint as the platform shows it to whoever looks, before the controller has said a word."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """One replica of a `Backend`, found where the platform lists them.

    `ready`: the platform says that it can serve; it says so late, and for what its own probes see.
    `terminating`: it has been told to end; what it has it may finish.
    """

    id: str
    host: str
    port: int
    ready: bool = True
    terminating: bool = False
