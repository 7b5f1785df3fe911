"""The Hugging Face Hub: does it answer, and what its errors mean for the user.

In: the name of a repository. Out: nothing, or an error that says what to do. The Hub's own clients
wait and repeat for half a minute to many minutes where it is not reachable, so it is asked once,
with a short timeout, before they are used. It does not know what the repository is for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from neoscope.errors import InputError, NeoscopeError, UnavailableError

PROBE_TIMEOUT = 5.0  # seconds


def is_local(name: str) -> bool:
    """Whether a model or tokenizer is a local folder rather than a name on the Hub."""
    return Path(name).is_dir()


def answers(name: str, kind: Literal["model", "dataset"]) -> bool:
    """Whether the Hub answers for this repository; False where it is offline or silent.

    Raises InputError where the Hub says that there is no such repository or no access to it.
    """
    import httpx2
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils._headers import build_hf_headers

    if os.path.sep in name and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise InputError(
            f"there is no folder {name}: give a folder that exists or a name on the Hub"
        )
    if constants.HF_HUB_OFFLINE:
        return False
    url = f"{constants.ENDPOINT}/api/{kind}s/{name}"
    try:
        reply = get_session().get(url, headers=build_hf_headers(), timeout=PROBE_TIMEOUT)
    except httpx2.TransportError:
        return False
    if reply.status_code in (401, 403, 404):
        raise InputError(
            f"the Hub has no {kind} {name}, or gives no access to it ({reply.status_code}): "
            "check the name, or set HF_TOKEN to a token that may read it"
        )
    if reply.status_code >= 400:
        raise UnavailableError(
            f"the Hub answers {reply.status_code} for the {kind} {name}; try the same command later"
        )
    return True


@contextmanager
def speaking(what: str, *, local: bool = False) -> Iterator[None]:
    """Turn what the Hub's clients raise while loading `what` into errors for the user."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except NeoscopeError:
        raise
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise InputError(f"the Hub has no such {what}: {_first_line(error)}") from None
    except (
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        httpx2.TransportError,
        ConnectionError,
        TimeoutError,
    ):
        raise UnavailableError(
            f"the Hub does not answer and {what} is not in its cache: try again with a connection, "
            "or give a local folder"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        kind = InputError if 400 <= status < 500 and status != 429 else UnavailableError
        raise kind(f"the Hub answers {status} for {what}: {_first_line(error)}") from None
    except (OSError, ValueError) as error:
        if not local and isinstance(error.__cause__, errors.LocalEntryNotFoundError):
            raise UnavailableError(
                f"the Hub does not answer and {what} is not in its cache: try again with a "
                "connection, or give a local folder"
            ) from None
        raise InputError(f"{what} cannot be loaded: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )
