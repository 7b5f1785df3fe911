"""A warm process that forks: each fork is the command `neoscope` without the seconds of its imports.

In: arguments and an environment. Out: a real process that can be killed, its exit code and what it
printed. The fork calls the console script's own `main`, on the main thread, so that signals and the
end of the process are those of the command. The warm process has one thread and has computed nothing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# Other libraries would spread their work over threads of their own.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, or minus the number of the signal that ended it."""

    code: int
    out: str
    err: str


class Process:
    """A forked command. `wait` returns when it has ended."""

    def __init__(self, forks: Forks, pid: int, printed: Path) -> None:
        self.pid = pid
        self._forks = forks
        self._printed = printed
        self._ended: Ended | None = None

    def send(self, number: signal.Signals) -> None:
        if self._ended is None:
            os.kill(self.pid, number)  # a process that has ended keeps its number until `poll`

    def kill(self) -> Ended:
        self.send(signal.SIGKILL)
        return self.wait()

    def poll(self) -> Ended | None:
        if self._ended is None:
            status = self._forks.ask({"poll": self.pid})
            if status is not None:
                texts = [self._printed.with_suffix(end).read_text() for end in (".out", ".err")]
                self._ended = Ended(os.waitstatus_to_exitcode(status), *texts)
        return self._ended

    @property
    def err(self) -> str:
        return self._printed.with_suffix(".err").read_text()

    def until(self, condition: Callable[[], bool]) -> None:
        """Return when something is the case; it must be so before the process has ended."""
        while not condition():
            assert self.poll() is None, f"it has ended: {self.err}"
            time.sleep(0.002)

    def wait(self, seconds: float = 240) -> Ended:
        deadline = time.monotonic() + seconds
        while (ended := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"the process did not end in {seconds} s: {self.err}")
            time.sleep(0.01)
        return ended


class Forks:
    """The warm process, from here. `start` may be called from many threads."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._lock = threading.Lock()
        self._started = 0

    def start(
        self, *arguments: object, disturb: str = "", environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start the command; `disturb` is Python that is executed before it."""
        with self._lock:
            self._started += 1
            printed = self._folder / str(self._started)
        for end in (".out", ".err"):
            printed.with_suffix(end).touch()
        request = {
            "arguments": ["neoscope", *map(str, arguments)],
            "environment": {**os.environ, **ONE_THREAD, **(environment or {})},
            "printed": str(printed),
            "disturb": disturb,
        }
        return Process(self, self.ask(request), printed)

    def run(self, *arguments: object, seconds: float = 240, **options: Any) -> Ended:
        return self.start(*arguments, **options).wait(seconds)

    def ask(self, request: dict[str, Any]) -> Any:
        with self._lock:
            assert self._server.stdin is not None
            assert self._server.stdout is not None
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            answer = self._server.stdout.readline()
            assert answer, "the warm process has ended"
            return json.loads(answer)


@contextmanager
def forking(folder: Path) -> Iterator[Forks]:
    """A warm process until the block ends; what its forks print is kept in `folder`."""
    environment = {**os.environ, **ONE_THREAD}
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as server:
        yield Forks(server, folder)
        assert server.stdin is not None
        server.stdin.close()


def _serve(asking: IO[str], answering: IO[str]) -> None:
    """Fork when asked to, and say how forks ended."""
    for line in asking:
        request = json.loads(line)
        answer: int | None
        if "poll" in request:
            pid, answer = os.waitpid(request["poll"], os.WNOHANG)
            answer = answer if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                _become(request)
        answering.write(json.dumps(answer) + "\n")
        answering.flush()


def _become(request: dict[str, Any]) -> None:
    """Be the command, to the end of the process."""
    printed = Path(request["printed"])
    files = [open(os.devnull), *(printed.with_suffix(end).open("w") for end in (".out", ".err"))]
    for number, file in enumerate(files):
        os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]
    random.seed()
    from neoscope.commands import main

    exec(request["disturb"], {})
    main.main()


def _warm() -> None:
    import boto3  # noqa: F401
    import datasets  # noqa: F401
    import jsonschema_rs  # noqa: F401
    import obstore.auth.boto3  # noqa: F401
    import torch
    import zarr  # noqa: F401

    import neoscope.commands.delete
    import neoscope.commands.recompute
    import neoscope.commands.summary
    import neoscope.commands.verify
    import neoscope.pipeline.partition
    import neoscope.reading.status
    import neoscope.statistics.length_kernels
    import neoscope.statistics.neuron_kernels
    import neoscope.statistics.token_kernels  # noqa: F401
    from neoscope.format import sealed_json

    torch.set_num_threads(1)
    for kind in ("run", "record", "manifest"):
        sealed_json._validator(kind)


if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _warm()
    with suppress(BrokenPipeError):
        _serve(sys.stdin, replies)
