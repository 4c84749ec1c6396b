# SPDX-License-Identifier: Apache-2.0
"""The extender's errors. Each says what was attempted, on what, and what to do about it.

Which HTTP status an error becomes is written in `app.py` alone.
"""


class ExtenderError(Exception):
    """Base of all errors that the extender raises on purpose."""


class RetryLater(ExtenderError):
    """Not now, maybe later: the same may succeed `after_s` seconds from now."""

    def __init__(self, message: str, *, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s


class NotLeading(RetryLater):
    """Another extender answers, or this one does not know the whole cluster yet."""


class Unreachable(RetryLater):
    """The API server did not answer, or not to the end: whether it acted is not known."""


class GiveUp(ExtenderError):
    """Will not work however often it is tried; somebody has to change something."""


class Refused(GiveUp):
    """The API server answered no; it changed nothing."""


class NotFound(Refused):
    """There is no such object."""


class Gone(Refused):
    """The API server no longer keeps the version asked for: list anew."""


class Malformed(GiveUp):
    """What kube-scheduler sent is not what its protocol says."""


class BadInput(ExtenderError):
    """What a user wrote cannot be used. The command line prints the lines and exits with 2."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
