# SPDX-License-Identifier: Apache-2.0
"""NVML, or one handle of it, that answers None where it has no answer."""

from typing import Any, Final

import pynvml

# How a GPU or a driver says that it does not have something, which is no trouble.
NOT_TOLD: Final = frozenset(
    {
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,  # of what only a whole GPU has, asked of an instance
        pynvml.NVML_ERROR_NOT_FOUND,
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_DATA,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_TIMEOUT,  # of events: there are none
    }
)


class Asked:
    """`trouble`: the first error that was more than a thing that is not there."""

    def __init__(self, library: Any, *handle: Any, trouble: str = "") -> None:
        self._library = library
        self.handle = handle
        self.trouble = trouble

    def again(self) -> "Asked":
        """The same, with no trouble noted."""
        return Asked(self._library, *self.handle)

    def ask(self, function: str, *arguments: Any) -> Any:
        """None, too, where the library is older than the function."""
        if None in self.handle or not hasattr(self._library, function):
            return None
        try:
            return getattr(self._library, function)(*self.handle, *arguments)
        except pynvml.NVMLError as error:
            self._note(error)
            return None

    def did(self, function: str, *arguments: Any) -> bool:
        """Whether what returns nothing was done."""
        if None in self.handle:
            return False
        try:
            getattr(self._library, function)(*self.handle, *arguments)
        except pynvml.NVMLError as error:
            self._note(error)
            return False
        return True

    def _note(self, error: pynvml.NVMLError) -> None:
        if error.value not in NOT_TOLD and not self.trouble:
            self.trouble = str(error)
