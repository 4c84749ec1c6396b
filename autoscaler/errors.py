# SPDX-License-Identifier: Apache-2.0
"""The controller's errors. Each says what was attempted, on what, and what to do about it."""


class TidegateError(Exception):
    """Base of all errors that the controller raises on purpose."""


class RetryLater(TidegateError):
    """Did not work now and may work later; the loop goes on and tries again."""

    def __init__(self, message: str, *, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s


class GiveUp(TidegateError):
    """Will not work however often it is tried; a person has to change something."""


class BadInput(TidegateError):
    """What a user wrote cannot be used. The command line prints the lines and exits with 2."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
