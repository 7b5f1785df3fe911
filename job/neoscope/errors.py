"""The one exception family: a message for the user and the exit code that it means.

Every message says what was wrong, the value seen, and what to do; `cli.py` prints it as one line.
"""

from __future__ import annotations


class NeoscopeError(Exception):
    """Base of every error that neoscope raises on purpose."""

    exit_code = 1


class UsageError(NeoscopeError):
    """Options that are wrong or do not fit together."""

    exit_code = 2


class InputError(NeoscopeError):
    """Invalid input; retrying will not help: text, tokenizer, model, bucket, permission."""

    exit_code = 3


class ConflictError(NeoscopeError):
    """The destination already holds something else."""

    exit_code = 4


class CheckError(NeoscopeError):
    """A value or an object is not what it must be; nothing was committed."""

    exit_code = 5


class UnavailableError(NeoscopeError):
    """Storage or the Hub did not answer; the same command may succeed later."""

    exit_code = 75
