"""Every error contextwrap raises on purpose.

    ContextwrapError
    ├── ConfigurationError   a setting is missing or wrong; raised at configure/wrap time, says what to do
    ├── OutboxError          the outbox cannot be opened or written; the message names the path
    │   ├── OutboxFullError      it has reached `outbox_limit`
    │   └── OutboxCorruptError   SQLite cannot read it
    ├── TokenError           a rating token cannot be made, or is not good (any more)
    ├── WireError            a request is not of the Context API's form; the server answers 400 with it
    ├── ImportFileError      a line of an imported file is bad; carries the line's number
    └── HomeInUseError       another server or importer works on this home; the message names it

None of them is ever raised into a recorded call: what fails there is counted, see `guard`.
"""

from __future__ import annotations


class ContextwrapError(Exception):
    """The base of all errors raised on purpose; its text is one line that says what to do."""


class ConfigurationError(ContextwrapError):
    """A setting is missing or wrong: change it and start again."""


class OutboxError(ContextwrapError):
    """The durable queue cannot be opened or written: look at the path and the disk it names."""


class OutboxFullError(OutboxError):
    """The durable queue has reached `outbox_limit`: have it delivered, or allow it more."""


class OutboxCorruptError(OutboxError):
    """SQLite cannot read the durable queue: its file is set aside, for whoever wants to save something of it."""


class TokenError(ContextwrapError):
    """A rating token cannot be made, or is not good (any more): have a new one issued."""


class WireError(ContextwrapError):
    """A request is not of the Context API's form: the caller has to change it."""


class ImportFileError(ContextwrapError):
    """A line of an imported file is bad: mend the line, or skip bad lines."""

    def __init__(self, reason: str, *, source: str, line: int) -> None:
        super().__init__(f"{source}, line {line}: {reason}")
        self.reason = reason
        self.source = source
        self.line = line


class HomeInUseError(ContextwrapError):
    """Another process keeps this home's store open: stop it, or talk to it instead."""
