"""A folder on this machine's loopback, for a browser on it.

In: a folder. Out: a server of its files by HTTP, which nothing outside of this machine reaches.
"""

from __future__ import annotations

import functools
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from neoscope.errors import InputError


class _Files(SimpleHTTPRequestHandler):
    # By themselves these depend on the system, and a browser runs no script of another type.
    extensions_map = {  # noqa: RUF012
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".css": "text/css",
        ".json": "application/json",
    }

    def log_message(self, *_: Any) -> None:
        pass


def loopback_server(folder: str, port: int) -> ThreadingHTTPServer:
    """A server of a folder at 127.0.0.1, at a free port where `port` is 0. Raises InputError where the
    port is taken."""
    try:
        handler = functools.partial(_Files, directory=folder)
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise InputError(
            f"--port {port}: {error.strerror}; give another, or 0 for a free one"
        ) from None
