"""A proxy in front of the store that spoils requests, or tells of them.

In: the address of a store, and a plan that names for each request what becomes of it. Out: an address
for the command, and an account of every request. A client's connection carries one request and ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from urllib.parse import unquote, urlsplit

ANSWERS = {
    "500": (b"500 Internal Server Error", b"InternalError"),
    "503": (b"503 Service Unavailable", b"SlowDown"),
    "gone": (b"404 Not Found", b"NoSuchBucket"),
}
# As S3 answers a signature that is wrong: with all that was signed, keys and tokens among it.
QUOTING = {
    "quoting 403": (b"403 Forbidden", b"SignatureDoesNotMatch"),
    "quoting 400": (b"400 Bad Request", b"AuthorizationHeaderMalformed"),
}
STALL = 1.0  # seconds
# What can become of a request: an error is answered; the connection is reset before the store sees
# the request; the answer is lost after the store has done it; it waits for STALL; the body is cut,
# and the connection with it. `short` looks like an answer that is whole, and `hold` waits for the gate.
# `flip` changes one bit of a body on its way to the store, `flip back` of one on its way from it; `swallow`
# answers a put as S3 would, its ETag right, and keeps nothing.
FAULTS = ("500", "503", "reset", "lost", "stall", "cut")


@dataclass(frozen=True)
class Request:
    """One request by its method and key (bucket and all), and what became of it."""

    method: str
    key: str
    query: str
    number: int
    fault: str | None = None
    access_key: str = ""  # that signed it


Plan = Callable[[Request], str | None]


@dataclass
class Proxy:
    """A proxy that listens at `endpoint`; `plan` may be changed at any moment."""

    target: tuple[str, int]
    plan: Plan = lambda _: None
    requests: list[Request] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    endpoint: str = ""

    @property
    def faults(self) -> Counter[str]:
        return Counter(request.fault for request in self.requests if request.fault)

    async def serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        """Take one request, and do with it as planned."""
        try:
            await self._serve(client, back)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            back.transport.abort()  # one of the two went away, or the test is over
        finally:
            back.close()

    async def _serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        head = await client.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        body = await client.readexactly(_length(head))
        url = urlsplit(target)
        signed = re.search(rb"Credential=([^/]*)/", head)
        asked = Request(
            method,
            unquote(url.path).lstrip("/"),
            url.query,
            len(self.requests),
            access_key=signed[1].decode() if signed else "",
        )
        self.requests.append(asked)
        fault = self.plan(asked)
        self.requests[asked.number] = replace(asked, fault=fault)
        if fault in ANSWERS:
            back.write(_refusal(*ANSWERS[fault]))
        elif fault in QUOTING:
            back.write(_refusal(*QUOTING[fault], quoting=head))
        elif fault == "swallow":
            back.write(_taken(body))
        elif fault == "reset":
            _reset(back)
        elif fault == "cut" and body:
            await self._pass_on(head, body[: len(body) // 2], half=True)
            _reset(back)
        else:
            if fault == "stall":
                await asyncio.sleep(STALL)
            while fault == "hold" and not self.gate.is_set():
                await asyncio.sleep(0.01)
            first, content = await self._pass_on(head, _flipped(body) if fault == "flip" else body)
            if fault == "flip back":
                content = _flipped(content)
            if fault == "lost":
                return _reset(back)
            if fault in ("cut", "short"):
                content = content[: len(content) // 2]
            if fault == "short":
                first = re.sub(rb"(?i)(content-length:) *\d+", rb"\1 %d" % len(content), first)
            back.write(_closing(first) + content)
            await back.drain()
            if fault == "cut":
                await asyncio.sleep(0.05)  # so that what was sent arrives before the reset does
                _reset(back)
        return None

    async def _pass_on(
        self, head: bytes, body: bytes, *, half: bool = False
    ) -> tuple[bytes, bytes]:
        """The store's whole answer, head and body; with `half`, the body is, and there is no answer."""
        answer, store = await asyncio.open_connection(*self.target)
        try:
            store.write(head + body)
            await store.drain()
            if half:
                return b"", b""
            first = await answer.readuntil(b"\r\n\r\n")
            if head.startswith(b"HEAD"):
                return first, b""
            if b"transfer-encoding: chunked" in first.lower():
                return first, await answer.readuntil(b"\r\n0\r\n\r\n")
            return first, await answer.readexactly(_length(first))
        finally:
            store.close()


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(found[1]) if found else 0


def _flipped(body: bytes) -> bytes:
    """The same with one bit changed, in another place each time."""
    changed = bytearray(body)
    if changed:
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _taken(body: bytes) -> bytes:
    tag = hashlib.md5(body).hexdigest().encode()
    return b'HTTP/1.1 200 OK\r\nETag: "%s"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n' % tag


def _closing(head: bytes) -> bytes:
    return head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


def _reset(back: asyncio.StreamWriter) -> None:
    """End a connection with RST instead of FIN, whatever is still to be sent."""
    linger = struct.pack("ii", 1, 0)
    back.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    back.transport.abort()


def _refusal(status: bytes, code: bytes, quoting: bytes = b"") -> bytes:
    quoted = b"<CanonicalRequest>%s</CanonicalRequest>" % quoting.replace(b"\r\n", b" ")
    body = b"<Error>%s<Code>%s</Code><Message>told to fail</Message></Error>" % (quoted, code)
    return _closing(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body))) + body


def spoil(seed: int, share: float = 0.2, faults: tuple[str, ...] = FAULTS) -> Plan:
    """A plan that spoils a share of all requests, chosen by a seed."""
    chance = random.Random(seed)

    def plan(_: Request) -> str | None:
        return chance.choice(faults) if chance.random() < share else None

    return plan


@contextmanager
def proxied(endpoint: str, plan: Plan = lambda _: None) -> Iterator[Proxy]:
    """A proxy in front of `endpoint`, until the block ends."""
    url = urlsplit(endpoint)
    assert url.hostname and url.port
    proxy = Proxy((url.hostname, url.port), plan)
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(proxy.serve, "127.0.0.1", 0))
    proxy.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
