"""Whether a store checks the bodies that it is sent, found out by sending it a wrong checksum.

In: obstore's store, a body. Out: the store to put through, and whether what it takes is what was sent. It
does not repeat anything, nor know what is to be done about a body that was altered; see `storage`.

S3's CRC-64 (`x-amz-checksum-crc64nvme`) costs the client a twentieth of a plain put's processor time; the MD5
that an ETag can be held against costs five times the put (tests/benchmarks/checked.py). But a store that does
not know the header takes the body all the same. So the first body goes with a wrong checksum: a store that
refuses it checks; one that takes it has stored the right body, and is trusted with nothing.
"""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
import xxhash
from obstore import exceptions as faults
from obstore.store import LocalStore, S3Store

from neoscope.storage.s3 import sibling

if TYPE_CHECKING:
    from obstore import Attributes, PutMode


Body = bytes | memoryview

BLOCK_BYTES = 1 << 17  # of a file that is compared
ALGORITHM = "crc64nvme"
HEADER = "x-amz-checksum-crc64nvme"
WRONG = "AAAAAAAAAAA="  # eight zero bytes, which only an empty body has
# What S3, MinIO and others answer to a body that is not the one that was signed or summed up.
REFUSAL = re.compile("BadDigest|ChecksumMismatch|ContentSHA256Mismatch|InvalidDigest")
UNKNOWN = re.compile("status code: (400|501)")  # a header that the store does not take
# What is answered with 400, not 5xx, where a body has not arrived whole or in time.
NOT_ARRIVED = re.compile("<Code>(IncompleteBody|RequestTimeout)</Code>")


class Checksums:
    """Puts with a checksum, where the store checks it. Safe to use from many threads."""

    def __init__(self, backend: S3Store | LocalStore) -> None:
        self._plain = backend
        self._summed = _sibling(backend, checksum=True) if isinstance(backend, S3Store) else backend
        self._checks = None if isinstance(backend, S3Store) else False
        self._asking = threading.Lock()

    def put(
        self, key: str, body: Body, mode: PutMode, content_type: str | None = None
    ) -> tuple[str | None, bool]:
        """Put a body with one request; its tag, and whether the store has checked that it is this body.

        Raises obstore's exceptions; see `refused`.
        """
        attributes: Attributes | None = None
        if content_type and isinstance(self._plain, S3Store):  # a folder has no such thing
            attributes = {"Content-Type": content_type}
        if self._checks is None and len(body):
            with self._asking:
                if self._checks is None and (tag := self._ask(key, body, mode, attributes)):
                    return tag, False
        backend = self._summed if self._checks else self._plain
        tag = _put(backend, key, body, mode, attributes)
        return tag, bool(self._checks)

    def _ask(
        self, key: str, body: Body, mode: PutMode, attributes: Attributes | None
    ) -> str | None:
        """Put a body with a wrong checksum; its tag where the store takes it in spite of that.

        Where the answer says nothing of checksums, the next put asks again.
        """
        assert isinstance(self._plain, S3Store)
        wrong = _sibling(self._plain, checksum=False)
        try:
            tag = _put(wrong, key, body, mode, attributes)
        except faults.BaseError as error:
            if refused(error):
                self._checks = True
            elif UNKNOWN.search(str(error)) and not NOT_ARRIVED.search(str(error)):
                self._checks = False
            return None
        self._checks = False
        return tag


def _put(
    backend: S3Store | LocalStore,
    key: str,
    body: Body,
    mode: PutMode,
    attributes: Attributes | None,
) -> str | None:
    put = obstore.put(backend, key, body, mode=mode, use_multipart=False, attributes=attributes)
    return put["e_tag"]


def refused(error: Exception) -> bool:
    """Whether a store has refused a body because it is not the one that was sent."""
    return REFUSAL.search(str(error)) is not None


def is_md5(tag: str | None, body: Body) -> bool:
    """Whether a tag is the body's MD5, as that of an object put whole and not encrypted by KMS is."""
    digest = (tag or "").strip('"')
    return len(digest) == 32 and digest == hashlib.md5(body, usedforsecurity=False).hexdigest()


def same(one: Body, other: Body) -> bool:
    """Whether two bodies are the same, by their size and xxh3-128, and without a copy of either."""
    return len(one) == len(other) and xxhash.xxh3_128_digest(one) == xxhash.xxh3_128_digest(other)


def same_as_file(body: Body, path: Path) -> bool:
    """Whether a file is this body, by its xxh3-128; it is read a block at a time, since memory for all of it
    would cost more than reading it."""
    digest, block = xxhash.xxh3_128(), memoryview(bytearray(BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.digest() == xxhash.xxh3_128_digest(body)


def _sibling(backend: S3Store, *, checksum: bool) -> S3Store:
    """A store of the same bucket that sends each body's checksum, or else always a wrong one."""
    if checksum:
        return sibling(backend, checksum_algorithm=ALGORITHM)
    options = {**(backend.client_options or {}), "default_headers": {HEADER: WRONG}}
    retry = {**(backend.retry_config or {}), "max_retries": 2}  # 501 is repeated too
    return sibling(backend, client_options=options, retry_config=retry)
