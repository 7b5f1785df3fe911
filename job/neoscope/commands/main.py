"""The process around a command: its thread, the signals that end it, and the exit code it ends with.

In: the command line. Out: an exit code, and one line for every error of the user's. It does not know what
the commands do.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import NoReturn

import click

from neoscope.commands.cli import cli
from neoscope.errors import NeoscopeError


def main() -> NoReturn:
    """The console script.

    The command runs on a thread of its own, so that the main thread is free to take a signal at any
    moment: while a library is imported, a forward pass runs or a store does not answer. Everything
    is stored in whole objects and recorded after it is stored, so ending at once loses nothing that
    is recorded. The process ends by `os._exit` throughout, since the destructors of a Parquet stream
    that was not read to its end can abort Python at exit.
    """
    codes: list[int] = []
    worker = threading.Thread(target=lambda: codes.append(invoke(sys.argv[1:])), daemon=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    worker.start()
    worker.join()
    _exit(codes[0] if codes else 1)


def invoke(arguments: list[str]) -> int:
    """Run one command and return its exit code; every error of the user's is one line."""
    try:
        code = cli.main(arguments, prog_name="neoscope", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except NeoscopeError as error:
        message, code = str(error), error.exit_code
    except click.Abort:
        message, code = "interrupted", 130
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        message, code = error.format_message(), 2
    except Exception:
        traceback.print_exc()
        message, code = "this is a defect of neoscope: please report it with the lines above", 1
    print("neoscope: error: " + " ".join(message.split()), file=sys.stderr)
    return code


def _stop(number: int, _frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    print(
        f"\nneoscope: stopped by {name}; nothing is half-written. Rerun the same command to "
        "resume from the last record.",
        file=sys.stderr,
    )
    _exit(128 + number)


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 1
    os._exit(code)
