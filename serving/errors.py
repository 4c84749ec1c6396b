# SPDX-License-Identifier: Apache-2.0
"""The worker's errors. Each says what was attempted, on what, and what to do about it.

Which HTTP status an error becomes is written in `protocols/http.py` alone.
"""


class WorkerError(Exception):
    """Base of all errors that the worker raises on purpose."""


class RetryLater(WorkerError):
    """Not now, maybe later: the same request may succeed `after_s` seconds from now."""

    def __init__(self, message: str, *, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s


class Overloaded(RetryLater):
    """The model's queue is full."""


class NotReady(RetryLater):
    """The model is still being loaded."""


class GiveUp(WorkerError):
    """Will not work however often it is tried; request, model or setting must change."""


class BadRequest(GiveUp):
    """What the client sent cannot be used."""


class NotFound(GiveUp):
    """No such path, model or version."""


class WrongVerb(GiveUp):
    """The path exists, but not with this verb."""

    def __init__(self, message: str, *, allowed: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allowed = allowed


class BodyTooLarge(GiveUp):
    """The body is over the limit."""


class InferenceFailed(GiveUp):
    """The engine failed on a request that looked right."""


class ModelNotLoaded(GiveUp):
    """A model's file exists but cannot become a model; the worker ends with status 1."""


class BadInput(WorkerError):
    """What was typed cannot be used. The command line prints the lines and exits with 2."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
