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
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore import exceptions as faults
from obstore.store import LocalStore, S3Store

if TYPE_CHECKING:
    from obstore import PutMode
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from neoscope.errors import InputError, UnavailableError, UsageError
from neoscope.storage.connections import MOST
from neoscope.storage.integrity import Body, Checksums, is_md5, same, same_as_file
from neoscope.storage.retries import READ, AlteredError, Requests
from neoscope.storage.s3 import open_bucket, sibling

S = TypeVar("S")
T = TypeVar("T")

REQUESTS_IN_FLIGHT = MOST
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")  # RFC 3986, 3.1
TEMPORARY = re.compile(r"#\d+$")
PUTS = 8  # of one body, as long as something else arrives
PAGE = 1000  # objects that S3 lists in one answer
READS = 3  # of an object, before it is believed that it is not the one that is asked for


@dataclasses.dataclass(frozen=True)
class Listed:
    """One object of a listing: its key, size in bytes, and the store's own tag of its content."""

    key: str
    size: int
    tag: str | None


class Store:
    """Objects under one URL. Keys are relative, with `/`. Safe to use from many threads.

    What was put is there, byte for byte, once `put` or `create` has returned: the store has checked its
    checksum, or its tag is the body's MD5, or it was read back and compared. In a local folder it is
    read back, which shows what the system holds of it in memory, not what the disk does.
    """

    def __init__(self, url: str, backend: S3Store | LocalStore) -> None:
        self.url = url
        self.backend = backend
        self._requests = Requests(url, is_local=self.is_local)
        self._checksums = Checksums(backend)
        self._told = False

    @property
    def is_local(self) -> bool:
        return isinstance(self.backend, LocalStore)

    def use_connections(self, count: int | None) -> None:
        """Keep to this many bodies at a time each way; None, as it is at first, lets the number follow the
        link."""
        if count:
            self._requests.up.fix(count)
            self._requests.down.fix(count)

    def get(self, key: str, fits: Callable[[Body], bool] | None = None) -> bytes | None:
        """The bytes of an object, or None where there is none; `fits` as of `read`."""
        body = self.read(key, fits)
        return None if body is None else bytes(body)

    def read(self, key: str, fits: Callable[[Body], bool] | None = None) -> memoryview | None:
        """As `get`, without the copy: for what is large and only looked at.

        A body that does not fit may have been altered on its way here: it is asked for again before it
        is handed out as it is.
        """

        def body() -> memoryview:
            return memoryview(obstore.get(self.backend, key).bytes())

        try:
            return again(
                lambda: self._requests.do(READ, key, body, len),
                lambda body: fits is None or fits(body),
            )
        except FileNotFoundError:
            return None

    def put(self, key: str, body: Body, content_type: str | None = None) -> str | None:
        """Put an object whole, in one request, over whatever is there; its tag. A bucket says of what
        `content_type` it is to who asks for it by HTTP."""
        return self._put(key, body, "overwrite", content_type)

    def create(self, key: str, body: Body) -> str | None:
        """Put an object only where there is none (`If-None-Match: *`); its tag.

        Raises FileExistsError where there is one already. That can be this very put, repeated by
        the client after a lost answer: compare before calling it a conflict.
        """
        try:
            return self._put(key, body, "create")
        except (faults.AlreadyExistsError, faults.PreconditionError):
            raise FileExistsError(key) from None

    def tag(self, key: str) -> str | None:
        """The store's own tag of an object's content."""
        return self._look_up(key)[1]

    def find(self, key: str) -> Listed | None:
        """One object as a listing shows it; None where there is none."""
        try:
            return Listed(key, *self._look_up(key))
        except FileNotFoundError:
            return None

    def _put(
        self, key: str, body: Body, mode: PutMode, content_type: str | None = None
    ) -> str | None:
        """Put a body until it is there as it is; its tag."""
        reason = ""
        for _ in range(PUTS):
            if reason:
                self._tell_once(f"{self.url}/{key} {reason}, and is put again")
            try:
                put, checked = self._requests.do(
                    "s3:PutObject",
                    key,
                    functools.partial(self._checksums.put, key, body, mode, content_type),
                    lambda _: len(body),
                )
                size, tag = self._look_up(key)
                if size == len(body) and tag == put and (checked or is_md5(tag, body)):
                    return tag
                if self._holds(key, body):
                    return tag
            except AlteredError:
                reason = "was altered on its way to the store, which has refused it"
                continue
            except FileNotFoundError:
                reason, mode = "was put and is not there", "create" if mode != "overwrite" else mode
                continue
            reason = "is not there as it was put"
            if mode != "overwrite":
                # Another has put it since; in a folder perhaps after its tag was looked up, where a bucket
                # refuses the put below.
                if tag != put or self.is_local:
                    raise FileExistsError(key)
                mode = {"e_tag": tag or ""}  # over ours, and nothing else
        raise UnavailableError(
            f"{self.url}/{key} {reason}, {PUTS} times: the storage or the way to it is faulty; "
            "rerun the same command to resume"
        )

    def _holds(self, key: str, body: Body) -> bool:
        """Whether an object reads back as this body. Raises FileNotFoundError."""
        if self.is_local:
            file = Path(self.url, key)
            return self._requests.do(READ, key, lambda: same_as_file(body, file))
        back = self.read(key, functools.partial(same, body))
        if back is None:
            raise FileNotFoundError(key)
        return same(back, body)

    def _look_up(self, key: str) -> tuple[int, str | None]:
        """Size and tag of an object. Raises FileNotFoundError."""
        found = self._requests.do(READ, key, lambda: obstore.head(self.backend, key))
        return found["size"], found["e_tag"]

    def _tell_once(self, line: str) -> None:
        if not self._told:
            self._told = True
            print(f"neoscope: warning: {line}", file=sys.stderr, flush=True)

    def objects(self, prefix: str = "") -> list[Listed]:
        """Every object under a prefix of whole path segments, in no order."""
        return list(self.listing(prefix))

    def listing(
        self, prefix: str = "", after: str | None = None, until: str | None = None
    ) -> Iterator[Listed]:
        """The same one by one, a page at a time in memory, of keys above `after` and below `until`.

        S3 lists by key, so a listing that broke off goes on where it was, and nothing is asked for that
        lies behind `until`.
        """
        last, pages = after, None
        while True:

            def page(after: str | None = last) -> Sequence[Any] | None:
                nonlocal pages
                if pages is None:
                    pages = iter(
                        obstore.list(self.backend, prefix or None, offset=after, chunk_size=PAGE)
                    )
                try:
                    return next(pages, None)
                except Exception:
                    pages = None
                    raise

            try:
                found = self._requests.do("s3:ListBucket", prefix, page)
            except FileNotFoundError:  # a local folder that does not exist yet
                return
            for item in found or ():
                key = item["path"]
                if until is None or key < until:
                    # A prefix that a console made as a folder is an object without a name.
                    if key:
                        yield Listed(key, item["size"], item["e_tag"])
                elif not self.is_local:
                    return
            if not found:
                return
            last = max(last or "", max(item["path"] for item in found))

    def first(self, wanted: Callable[[str], bool]) -> str | None:
        """The key of an object that is `wanted`, None where there is none. A listing is not read
        further than to that. Of a local folder also `name#1`, which no listing shows."""

        def look() -> str | None:
            keys = (item["path"] for page in obstore.list(self.backend) for item in page)
            each = itertools.chain(keys, self._temporary_files())
            return next((key for key in each if key and wanted(key)), None)

        try:
            return self._requests.do("s3:ListBucket", "", look)
        except FileNotFoundError:  # a local folder that does not exist yet
            return None

    def parents(self) -> Iterator[Store]:
        """The stores that this one lies in, the nearest first; not a bucket itself."""
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
            found = self._requests.do("s3:ListBucket", "", names)
        except FileNotFoundError:
            return []
        if isinstance(self.backend, LocalStore):
            folders = [str(Path(self.url, name)) for name in found]
            return [Store(folder, LocalStore(folder)) for folder in folders]
        above = f"{self.backend.prefix}/" if self.backend.prefix else ""
        return [self._at(f"{above}{name}", self.backend) for name in found]

    def _at(self, prefix: str, bucket: S3Store) -> Store:
        """Another place in the same bucket."""
        backend = sibling(bucket, prefix=prefix)
        return Store(f"{self.url.removesuffix(bucket.prefix or '')}{prefix}", backend)

    def delete(self, keys: list[str]) -> None:
        """Delete objects; one that is not there is no error."""
        if self.is_local:  # obstore stops at the first file that is not there
            for key in keys:
                with contextlib.suppress(FileNotFoundError):
                    self._requests.do("", key, functools.partial(obstore.delete, self.backend, key))
            return
        if keys:
            with contextlib.suppress(FileNotFoundError):
                self._requests.do("s3:DeleteObject", "", lambda: obstore.delete(self.backend, keys))

    def clear_temporary_files(self) -> None:
        """Remove what a killed put left in a local folder: `name#1`, which no listing shows."""
        for key in self._temporary_files():
            (Path(self.url) / key).unlink(missing_ok=True)

    def _temporary_files(self) -> Iterator[str]:
        root = Path(self.url)
        for path in root.rglob("*#*") if self.is_local else ():
            if TEMPORARY.search(path.name):
                yield path.relative_to(root).as_posix()


def again(read: Callable[[], T], fits: Callable[[T], bool]) -> T:
    """What a read gives. Where that does not fit, it may have been altered on its way here: it is read
    again some times before it is believed."""
    for _ in range(READS - 1):
        if fits(found := read()):
            return found
    return read()


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


def concurrent_map(
    work: Callable[[S], T], items: Iterable[S], most: int = REQUESTS_IN_FLIGHT
) -> Generator[T, None, None]:
    """`work` of every item, in order, `most` at a time. Of what is done no more than twice as many wait to
    be taken, so an item may be anything that fits so often into memory."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(most) as pool:
        try:
            for item in items:
                if len(waiting) == 2 * most:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(work, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
