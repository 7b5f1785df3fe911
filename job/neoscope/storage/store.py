"""One URL in, one store out: S3-compatible storage or a local folder.

In: `s3://bucket/prefix` or a path. Out: a `Store` whose keys are relative to it. Every fault of the
storage comes out as a NeoscopeError that says what to do. It does not know what the objects mean, nor how
a bucket is found; see `s3`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore import exceptions as faults
from obstore.store import LocalStore, S3Store

from neoscope.errors import InputError, NeoscopeError, UnavailableError, UsageError
from neoscope.storage.s3 import RETRY, open_bucket

S = TypeVar("S")
T = TypeVar("T")
Body = bytes | memoryview


REQUESTS_IN_FLIGHT = 8
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")  # RFC 3986, 3.1
TEMPORARY = re.compile(r"#\d+$")
TRIES_AFTER_TIMEOUT = 4
CLEARED_AT_MOST = 4  # times that another worker takes a put's temporary file for one left behind
NO_BUCKET = "NoSuchBucket"
DENIED = re.compile(r"status code: 403|code: AccessDenied")
PROVIDER = "External AWS credential provider: "  # as obstore names what neoscope hands it
SAID = re.compile(r"<Code>([^<]*)</Code>\s*<Message>([^<]*)</Message>")


@dataclasses.dataclass(frozen=True)
class Listed:
    """One object of a listing: its key, size in bytes, and the store's own tag of its content."""

    key: str
    size: int
    tag: str | None


class _Lanes:
    """How many bodies are on the way at a time. Halved after a timeout: on a slow uplink many at once
    starve one another until all of them time out."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._taken < self._limit)
            self._taken += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._taken -= 1
            self._changed.notify()

    def narrow(self) -> None:
        with self._changed:
            self._limit = max(1, self._limit // 2)


class Store:
    """Objects under one URL. Keys are relative, with `/`. Safe to use from many threads."""

    def __init__(self, url: str, backend: S3Store | LocalStore) -> None:
        self.url = url
        self.backend = backend
        self._lanes = _Lanes(REQUESTS_IN_FLIGHT)

    @property
    def is_local(self) -> bool:
        return isinstance(self.backend, LocalStore)

    def get(self, key: str) -> bytes | None:
        """The bytes of an object, or None where there is none."""
        body = self.read(key)
        return None if body is None else bytes(body)

    def read(self, key: str) -> memoryview | None:
        """As `get`, without the copy: for what is large and only looked at."""
        try:
            return self._do(
                "s3:GetObject", key, lambda: memoryview(obstore.get(self.backend, key).bytes())
            )
        except FileNotFoundError:
            return None

    def put(self, key: str, body: Body) -> str | None:
        """Put an object whole, in one request, over whatever is there; its tag."""
        return self._do(
            "s3:PutObject",
            key,
            lambda: obstore.put(self.backend, key, body, use_multipart=False)["e_tag"],
        )

    def create(self, key: str, body: Body) -> str | None:
        """Put an object only where there is none (`If-None-Match: *`); its tag.

        Raises FileExistsError where there is one already. That can be this very put, repeated by
        the client after a lost answer: compare before calling it a conflict.
        """
        try:
            return self._do(
                "s3:PutObject",
                key,
                lambda: obstore.put(self.backend, key, body, mode="create")["e_tag"],
            )
        except faults.AlreadyExistsError:
            raise FileExistsError(key) from None

    def tag(self, key: str) -> str | None:
        """The store's own tag of an object's content."""
        return self._do("s3:GetObject", key, lambda: obstore.head(self.backend, key)["e_tag"])

    def objects(self, prefix: str = "") -> list[Listed]:
        """Every object under a prefix of whole path segments, in no order."""
        found: list[Listed] = []

        def rest() -> None:
            # S3 lists by key: a listing that broke off goes on where it was.
            last = max((item.key for item in found), default=None)
            for page in obstore.list(self.backend, prefix or None, offset=last):
                # A prefix that a console made as a folder is an object without a name.
                found.extend(
                    Listed(item["path"], item["size"], item["e_tag"])
                    for item in page
                    if item["path"]
                )

        with contextlib.suppress(FileNotFoundError):  # a local folder that does not exist yet
            self._do("s3:ListBucket", prefix, rest)
        return found

    def first(self, wanted: Callable[[str], bool]) -> str | None:
        """The key of an object that is `wanted`, None where there is none. A listing is not read
        further than to that. Of a local folder also `name#1`, which no listing shows."""

        def look() -> str | None:
            keys = (item["path"] for page in obstore.list(self.backend) for item in page)
            each = itertools.chain(keys, self._temporary_files())
            return next((key for key in each if key and wanted(key)), None)

        try:
            return self._do("s3:ListBucket", "", look)
        except FileNotFoundError:  # a local folder that does not exist yet
            return None

    def parents(self) -> Iterator[Store]:
        """The places that this one lies in, the nearest first; not a bucket itself."""
        if isinstance(self.backend, LocalStore):
            for folder in Path(self.url).resolve().parents:
                yield Store(str(folder), LocalStore(str(folder)))
            return
        for prefix in PurePosixPath(self.backend.prefix or "").parents[:-1]:
            yield self._at(str(prefix), self.backend)

    def children(self) -> list[Store]:
        """The folders of this place, by name: one request, however much lies in them."""

        def names() -> list[str]:
            return sorted(obstore.list_with_delimiter(self.backend)["common_prefixes"])

        try:
            found = self._do("s3:ListBucket", "", names)
        except FileNotFoundError:
            return []
        if isinstance(self.backend, LocalStore):
            folders = [str(Path(self.url, name)) for name in found]
            return [Store(folder, LocalStore(folder)) for folder in folders]
        above = f"{self.backend.prefix}/" if self.backend.prefix else ""
        return [self._at(f"{above}{name}", self.backend) for name in found]

    def _at(self, prefix: str, bucket: S3Store) -> Store:
        """Another place in the same bucket."""
        # obstore gives endpoint_url_s3 back, and takes it only with its first syllable.
        config: Any = {f"aws_{name}": value for name, value in bucket.config.items()}
        backend = S3Store(
            prefix=prefix,
            config=config,
            client_options=bucket.client_options,
            retry_config=bucket.retry_config,
            credential_provider=bucket.credential_provider,
        )
        return Store(f"{self.url.removesuffix(bucket.prefix or '')}{prefix}", backend)

    def delete(self, keys: list[str]) -> None:
        """Delete objects; one that is not there is no error."""
        if self.is_local:  # obstore stops at the first file that is not there
            for key in keys:
                with contextlib.suppress(FileNotFoundError):
                    self._do("", key, functools.partial(obstore.delete, self.backend, key))
            return
        if keys:
            with contextlib.suppress(FileNotFoundError):
                self._do("s3:DeleteObject", "", lambda: obstore.delete(self.backend, keys))

    def clear_temporary_files(self) -> None:
        """Remove what a killed put left in a local folder: `name#1`, which no listing shows."""
        for key in self._temporary_files():
            (Path(self.url) / key).unlink(missing_ok=True)

    def _temporary_files(self) -> Iterator[str]:
        root = Path(self.url)
        for path in root.rglob("*#*") if self.is_local else ():
            if TEMPORARY.search(path.name):
                yield path.relative_to(root).as_posix()

    def _do(self, permission: str, key: str, operation: Callable[[], T]) -> T:
        """Run one operation; repeat it where the connection broke or it timed out; turn faults into
        errors that say what to do. What is repeated may have been done: see `create`."""
        began = time.monotonic()
        for attempt in itertools.count():
            try:
                with self._lanes:
                    return operation()
            except (FileNotFoundError, faults.NotFoundError) as error:
                if NO_BUCKET in str(error):
                    raise self._bucketless() from None
                raise FileNotFoundError(key) from None
            except faults.AlreadyExistsError:
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
                if "Unable to rename file: No such file" in reason and attempt < CLEARED_AT_MOST:
                    continue
                if self.is_local:
                    raise InputError(f"cannot use {self.url}/{key}: {reason}") from None
                if self._repeats(str(error), attempt, time.monotonic() - began):
                    time.sleep(min(2**attempt, 10) * random.uniform(0.1, 0.5))
                    continue
                raise UnavailableError(
                    f"storage did not serve {self.url}/{key}: {reason}; run the same command again to go on"
                ) from None
        raise AssertionError("unreachable")

    def _repeats(self, fault: str, attempt: int, seconds: float) -> bool:
        if "HTTP error" not in fault:  # the store answered, and obstore has done what can be done
            return False
        if "kind: Timeout" in fault:
            self._lanes.narrow()
            return attempt + 1 < TRIES_AFTER_TIMEOUT
        return attempt < RETRY["max_retries"] and seconds < RETRY["retry_timeout"].total_seconds()

    def _bucketless(self) -> InputError:
        return InputError(
            f"the bucket of {self.url} does not exist: create it, or give another output"
        )

    def _denied(self, permission: str, key: str, reason: str) -> NeoscopeError:
        if PROVIDER in reason:
            return UnavailableError(
                f"the credentials for {self.url} could not be renewed: "
                f"{reason.partition(PROVIDER)[2]}; run the same command again to go on"
            )
        what = f"{permission} on " if not self.is_local else "no permission for "
        return InputError(
            f"access denied: {what}{self.url}/{key} ({reason}); "
            "check the credentials and what they allow"
        )


def open_store(
    url: str,
    *,
    endpoint_url: str | None = None,
    sign_payload: bool = False,
    write: bool = False,
    change: bool = False,
    root: bool = False,
) -> Store:
    """The store at `s3://bucket/prefix` or a local folder, seen to be there.

    With `write`, a local folder is made; a bucket never is. A bucket is read without credentials
    where there are none, but not with `write`, nor with `change`, which is for what exists. With `root`
    it may be a bucket without a prefix, which a run may not. Raises
    InputError for a bucket that does not exist, a denied access or missing credentials,
    UnavailableError where nothing answers, UsageError for a URL of another kind.
    """
    if url.startswith("s3://"):
        return Store(
            *open_bucket(
                url, endpoint_url, sign_payload=sign_payload, change=write or change, root=root
            )
        )
    if not url:
        raise UsageError("the output is empty: give s3://bucket/prefix or a local folder")
    _check_no_scheme(url)
    path = Path(url).expanduser().absolute()
    if not write and not path.is_dir():
        raise InputError(f"there is no run at {path}: no such folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}") from None
    return Store(str(path), LocalStore(str(path)))


def _check_no_scheme(url: str) -> None:
    """Raise UsageError for what begins as a URL does, rather than make a folder called `s3:`."""
    scheme = SCHEME.match(url)
    if not scheme or Path(url).drive:  # C:\runs, on Windows
        return
    if scheme[1].lower() == "s3":
        rest = url[scheme.end() :].lstrip("/")
        raise UsageError(f"{url} is no URL of S3: give s3://{rest or 'bucket/prefix'}")
    if scheme[1].lower() == "file":
        raise UsageError(f"{url} is a URL: give the folder's path, {urlsplit(url).path}")
    raise UsageError(
        f"{url} is neither s3://bucket/prefix nor a local folder: a folder of that name is ./{url}"
    )


def _reason(error: Exception) -> str:
    """The first line of a fault, without the client's debug output, and what the store says in it.

    Of an answer only code and message: S3's own have keys and tokens of the request in the rest.
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    first = lines[0].partition("<")[0].strip()[:300] if lines else type(error).__name__
    said = SAID.search(str(error))
    return f"{first} {said[1]}: {said[2]}" if said else first


def concurrent_map(work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """`work` of every item, in order, as many at a time as there may be requests on their way."""
    with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
        yield from pool.map(work, items)
