"""A stand-in for S3 that holds what is put in memory, and lists chunks that nobody has put.

    python tests/benchmarks/listing_store.py PORT '{"PREFIX": [ROWS, COLUMNS, SIZE], ...}'

In: for each array the prefix of its chunks' keys, how many rows of how many chunks there are, and their size.
Out: an S3 server, as far as a commit goes, whose listings have these chunks in S3's own order. It stands for
servers that list at once: a MinIO would take hours to be filled with a run of a million batches.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import xxhash

PAGE = 1000
MADE = "Wed, 25 Nov 2026 00:00:00 GMT"
ITEM = (
    "<Contents><Key>{}</Key><LastModified>2026-11-25T00:00:00.000Z</LastModified>"
    "<ETag>{}</ETag><Size>{}</Size></Contents>"
)


def tag(key: str) -> str:
    """The tag that a chunk with this key has; of no real body, but as long as an MD5."""
    return f'"{xxhash.xxh3_128_hexdigest(key.encode())}"'


class Objects:
    """What is there, by key."""

    def __init__(self, arrays: dict[str, list[int]]) -> None:
        self.arrays = arrays
        self.bodies: dict[str, bytes] = {}
        self.changing = threading.Lock()

    def create(self, key: str, body: bytes, *, over: bool) -> bool:
        with self.changing:
            if key in self.bodies and not over:
                return False
            self.bodies[key] = body
            return True

    def listing(self, prefix: str, after: str) -> Iterator[tuple[str, str, int]]:
        for name, (rows, columns, size) in self.arrays.items():
            if prefix.startswith(name):
                yield from ((key, tag(key), size) for key in chunks(name, rows, columns, after))
                return
        for key in sorted(self.bodies):
            if key.startswith(prefix) and key > after:
                yield key, md5(self.bodies[key]), len(self.bodies[key])


def md5(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


@cache
def in_order(count: int) -> list[str]:
    """The numbers below `count` as S3 lists them."""
    return sorted(map(str, range(count)))


def chunks(name: str, rows: int, columns: int, after: str) -> Iterator[str]:
    """The keys of an array's chunks behind `after`."""
    numbers = in_order(rows)
    first = after.removeprefix(name).partition("/")[0] if after > name else ""
    last = in_order(columns) if columns > 1 else []
    for place in range(bisect.bisect_left(numbers, first), rows):
        row = f"{name}{numbers[place]}/0"
        for key in [f"{row}/{column}" for column in last] or [row]:
            if key > after:
                yield key


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: Objects

    def do_HEAD(self) -> None:
        self.find(with_body=False)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: words[0] for name, words in parse_qs(parts.query).items()}
        if "list-type" not in query:
            self.find(with_body=True)
            return
        after = query.get("continuation-token") or query.get("start-after", "")
        each = self.objects.listing(query.get("prefix", ""), after)
        items = [item for item, _ in zip(each, range(PAGE), strict=False)]
        more = len(items) == PAGE
        rest = f"<NextContinuationToken>{items[-1][0]}</NextContinuationToken>" if more else ""
        self.answer(
            200,
            f'<?xml version="1.0"?><ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>'
            f"{rest}{''.join(ITEM.format(*item) for item in items)}</ListBucketResult>".encode(),
        )

    def find(self, *, with_body: bool) -> None:
        key = self.key()
        body = self.objects.bodies.get(key, b"" if not key else None)
        if body is None:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>", with_body=with_body)
        else:
            self.answer(200, body, with_body=with_body, etag=md5(body))

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        over = self.headers.get("If-None-Match") != "*"
        if self.objects.create(self.key(), body, over=over):
            self.answer(200, b"", etag=md5(body))
        else:
            self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        for key in re.findall("<Key>([^<]*)</Key>", text):
            self.objects.bodies.pop(key, None)
        self.answer(200, b'<?xml version="1.0"?><DeleteResult></DeleteResult>')

    def key(self) -> str:
        """The key that is asked for, without the bucket."""
        return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

    def answer(self, code: int, body: bytes, *, with_body: bool = True, etag: str = "") -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", MADE)
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    Handler.objects = Objects(json.loads(sys.argv[2]))
    ThreadingHTTPServer.request_queue_size = 128
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
