"""One request to a store: repeated where the connection broke, its faults told as what to do about them.

In: an operation. Out: what it gives, or a NeoscopeError. It does not know objects.
"""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

from obstore import exceptions as faults

from neoscope.errors import InputError, NeoscopeError, UnavailableError
from neoscope.storage.connections import ConcurrencyLimit
from neoscope.storage.integrity import NOT_ARRIVED, refused
from neoscope.storage.s3 import RETRY

T = TypeVar("T")

TRIES_AFTER_TIMEOUT = 4
CLEARED_AT_MOST = 4  # times that another worker takes a put's temporary file for one left behind
NO_BUCKET = "NoSuchBucket"
READ = "s3:GetObject"
DENIED = re.compile(r"status code: 403|code: AccessDenied")
PROVIDER = "External AWS credential provider: "  # as obstore names what neoscope hands it
SAID = re.compile(r"<Code>([^<]*)</Code>\s*<Message>([^<]*)</Message>")


class AlteredError(Exception):
    """The store has refused a body because it is not the one that was sent."""


class Requests:
    """Requests to the store at `url`. Safe to use from many threads."""

    def __init__(self, url: str, *, is_local: bool) -> None:
        # Two ways that do not hold each other up: what is read back waits for no put, and no put for it.
        self.up, self.down = ConcurrencyLimit(), ConcurrencyLimit()
        self._url = url
        self._is_local = is_local

    def do(
        self,
        permission: str,
        key: str,
        operation: Callable[[], T],
        size: Callable[[T], int] | None = None,
    ) -> T:
        """Run one operation; repeat it where the connection broke or it timed out; turn faults into
        errors that say what to do. What is repeated may have been done: see `Store.create`.

        `size` gives the bytes that it moved: only what moves a body waits for a connection to be free.
        """
        began, limit = time.monotonic(), self.down if permission == READ else self.up
        for attempt in itertools.count():
            try:
                with limit.slot() if size else nullcontext():
                    started = time.monotonic()
                    result = operation()
                if size:
                    limit.moved(size(result))
                return result
            except (FileNotFoundError, faults.NotFoundError) as error:
                if NO_BUCKET in str(error):
                    raise self._bucketless() from None
                raise FileNotFoundError(key) from None
            except (faults.AlreadyExistsError, faults.PreconditionError):
                raise
            except (
                faults.PermissionDeniedError,
                faults.UnauthenticatedError,
                PermissionError,
            ) as error:
                raise self._denied(permission, key, _reason(error)) from None
            except (faults.BaseError, OSError) as error:
                reason = _reason(error)
                # Of a listing or a delete, these two are generic faults.
                if NO_BUCKET in reason:
                    raise self._bucketless() from None
                if DENIED.search(reason):
                    raise self._denied(permission, key, reason) from None
                if refused(error):
                    raise AlteredError(reason) from None
                if "Unable to rename file: No such file" in reason and attempt < CLEARED_AT_MOST:
                    continue
                if self._is_local:
                    raise InputError(f"cannot use {self._url}/{key}: {reason}") from None
                if self._repeats(str(error), attempt, limit, started, time.monotonic() - began):
                    time.sleep(min(2**attempt, 10) * random.uniform(0.1, 0.5))
                    continue
                raise UnavailableError(
                    f"storage did not serve {self._url}/{key}: {reason}; rerun the same command to resume"
                ) from None
        raise AssertionError("unreachable")

    @staticmethod
    def _repeats(
        fault: str, attempt: int, limit: ConcurrencyLimit, started: float, seconds: float
    ) -> bool:
        # Of most that the store answers obstore has repeated what can be repeated.
        if "HTTP error" not in fault and not NOT_ARRIVED.search(fault):
            return False
        if "kind: Timeout" in fault:
            limit.timed_out(started)
            return attempt + 1 < TRIES_AFTER_TIMEOUT
        return attempt < RETRY["max_retries"] and seconds < RETRY["retry_timeout"].total_seconds()

    def _bucketless(self) -> InputError:
        return InputError(
            f"the bucket of {self._url} does not exist: create it, or give another output"
        )

    def _denied(self, permission: str, key: str, reason: str) -> NeoscopeError:
        if PROVIDER in reason:
            return UnavailableError(
                f"the credentials for {self._url} could not be renewed: "
                f"{reason.partition(PROVIDER)[2]}; rerun the same command to resume"
            )
        what = f"{permission} on " if not self._is_local else "no permission for "
        return InputError(
            f"access denied: {what}{self._url}/{key} ({reason}); "
            "check the credentials and what they allow"
        )


def _reason(error: Exception) -> str:
    """The first line of a fault, without the client's debug output, and what the store says in it.

    Of an answer only code and message: S3's own have keys and tokens of the request in the rest.
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    first = lines[0].partition("<")[0].strip()[:300] if lines else type(error).__name__
    said = SAID.search(str(error))
    return f"{first} {said[1]}: {said[2]}" if said else first
