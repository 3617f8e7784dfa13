"""Every error that Hustings raises on purpose; each message names the fix.

HustingsError
├── InvalidInput (ValueError)         422  what was sent cannot be used; `line` where it came from a file
│   └── PromptTooLong                 422  counted in tokens; `oldest_can_go`: without its oldest turns it would fit
├── Unauthorized (PermissionError)    401  no or wrong operator token
├── Forbidden (PermissionError)       403  known, but not allowed (foreign origin, operators only)
├── NotFound (LookupError)            404  unknown, or not yours
├── Conflict                          409  already done, or not now
│   ├── AlreadyVoted                  409
│   ├── RunActive                     409  `run` is the run that is on
│   └── NothingToLearn                409  says how many votes are missing
├── Expired                           410  the comparison is older than 24 h
├── Unavailable (RuntimeError)        503  the engine is loading, full, too slow or stopping; try again
│   └── TookTooLong                   503  an answer had not ended in time and was stopped
├── AdapterError (ValueError)         422  an adapter that does not fit or is broken; the old version keeps serving
└── StartupError (RuntimeError)            the server cannot start
    ├── ModelError                         missing or broken model
    ├── DatabaseBusy                       another server holds the database; its pid is named
    └── PortInUse
"""

from __future__ import annotations


class HustingsError(Exception):
    """Root of all errors raised on purpose. `status` is the HTTP status, `code` the machine-readable name."""

    status = 500
    code = "error"


class InvalidInput(HustingsError, ValueError):
    """What was sent cannot be used."""

    status = 422
    code = "invalid_input"

    def __init__(self, message: str, *, line: int | None = None) -> None:
        super().__init__(message if line is None else f"line {line}: {message}")
        self.line = line


class PromptTooLong(InvalidInput):
    """The prompt and the answer do not fit the model's context."""

    code = "prompt_too_long"

    def __init__(self, message: str, *, oldest_can_go: bool = False) -> None:
        super().__init__(message)
        self.oldest_can_go = oldest_can_go


class Unauthorized(HustingsError, PermissionError):
    """No or wrong operator token."""

    status = 401
    code = "unauthorized"


class Forbidden(HustingsError, PermissionError):
    """Known, but not allowed."""

    status = 403
    code = "forbidden"


class NotFound(HustingsError, LookupError):
    """Unknown, or not yours: the two are not told apart."""

    status = 404
    code = "not_found"


class Conflict(HustingsError):
    """Already done, or not now."""

    status = 409
    code = "conflict"


class AlreadyVoted(Conflict):
    """A comparison takes one standing vote."""

    code = "already_voted"


class RunActive(Conflict):
    """A training run is on."""

    code = "run_active"

    def __init__(self, run: int) -> None:
        super().__init__(f"run {run} is on; wait for it or cancel it first")
        self.run = run


class NothingToLearn(Conflict):
    """There are not enough new votes for a run."""

    code = "nothing_to_learn"


class Expired(HustingsError):
    """The comparison is no longer open."""

    status = 410
    code = "expired"


class Unavailable(HustingsError, RuntimeError):
    """The engine is loading, full, too slow or stopping."""

    status = 503
    code = "unavailable"


class TookTooLong(Unavailable):
    """An answer had not ended in time and was stopped."""


class AdapterError(HustingsError, ValueError):
    """An adapter that does not fit this base, or is broken."""

    status = 422
    code = "adapter"


class StartupError(HustingsError, RuntimeError):
    """The server cannot start."""

    code = "startup"


class ModelError(StartupError):
    """The model is missing or broken."""

    code = "model"


class DatabaseBusy(StartupError):
    """Another process holds the database."""

    code = "database_busy"


class PortInUse(StartupError):
    """Something else listens there."""

    code = "port_in_use"
