"""The Hugging Face Hub: the commit that a name stands for, and what the Hub's errors mean for the user.

In: the name of a repository and a revision. Out: where it is read from, or an error that says what to
do. The Hub's own clients wait and repeat for half a minute to many minutes where it is not reachable,
so it is asked once, with a short timeout, before they are used. It does not know what is read.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import functools
import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from neoscope.errors import InputError, NeoscopeError, UnavailableError, UsageError

PROBE_TIMEOUT = 5.0  # seconds
TRY_LATER = (408, 429)  # and every status from 500 on
NO_ROOM = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
FOLDER = "give a local folder"

Kind = Literal["model", "dataset"]


@dataclasses.dataclass(frozen=True)
class Repository:
    """Where a repository is read from: at one commit of it, or in a local folder (`commit` is None).

    `unavailable_reason` says why the Hub cannot be asked for files, so that only its cache on this disk
    is left.
    """

    commit: str | None = None
    unavailable_reason: str | None = None

    @property
    def offline(self) -> bool:
        return self.commit is None or self.unavailable_reason is not None


def find(what: str, name: str, revision: str | None, *, known: Iterable[str] = ()) -> Repository:
    """Where the model or tokenizer `name` is read from; `what` is what the user calls it.

    Where it is not found, the one of the `known` names that is nearest is asked for, if any is near.
    A revision is resolved once, so that every file is of one commit: by the Hub, or from its cache
    where the Hub does not answer. Raises InputError where the Hub says that there is no such thing.
    """
    if Path(name).is_dir():
        if revision:
            raise UsageError(f"{what} is a local folder, which has no revision {revision}: drop it")
        return Repository()
    if _is_path(name):
        raise InputError(f"{what} is no folder here: give one that exists, or a name on the Hub")
    return _find(what, name, revision, "model", FOLDER, _did_you_mean(name, known))


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question for the end of a sentence; empty where no known name is near, or it is this one."""
    names = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.8)
    return f"; did you mean {names[near[0]]}?" if near and near != [name.lower()] else ""


def file_names(
    what: str, name: str, repository: Repository, kind: Kind = "model", *, alternative: str = FOLDER
) -> list[str]:
    """All files of a repository at its commit; those of them in the cache where the Hub can't be asked; of a
    local folder those in it."""
    from huggingface_hub import HfApi

    if repository.offline:
        commit = repository.commit
        folder = _cache(name, kind) / "snapshots" / commit if commit else Path(name)
        return sorted(
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        )
    with translate_errors(what, alternative=alternative):
        return HfApi().list_repo_files(name, revision=repository.commit, repo_type=kind)


def file(
    what: str,
    name: str,
    path: str,
    repository: Repository,
    kind: Kind = "model",
    *,
    alternative: str = FOLDER,
) -> Path | None:
    """A file of a repository, in its folder or in the Hub's cache, brought there if need be; None where the
    repository has no such file. Raises UnavailableError for what is not in the cache where the
    Hub can't be asked."""
    from huggingface_hub import errors, hf_hub_download

    if repository.commit is None:
        local = Path(name, path)
        return local if local.exists() else None
    with translate_errors(what, repository.unavailable_reason, alternative=alternative):
        try:
            return Path(
                hf_hub_download(
                    name,
                    path,
                    repo_type=kind,
                    revision=repository.commit,
                    local_files_only=repository.offline,
                )
            )
        except errors.LocalEntryNotFoundError:
            raise
        except errors.EntryNotFoundError:
            return None


def sizes(what: str, name: str, repository: Repository, paths: list[str]) -> dict[str, int]:
    """The bytes of files of a data set, as the Hub says."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with translate_errors(what):
        found = HfApi().get_paths_info(name, paths, revision=repository.commit, repo_type="dataset")
    return {each.path: each.size for each in found if isinstance(each, RepoFile)}


def note_path(name: str, commit: str, *parts: str | None) -> Path:
    """Where neoscope notes, beside the Hub's own files of a data set in its cache, what a text of it is."""
    words = ".".join(quote(part or "", safe="") for part in (commit, *parts))
    return _cache(name, "dataset") / "neoscope" / f"{words}.json"


def put_note(what: str, path: Path, text: str) -> None:
    """Write such a note, whole or not at all."""
    with translate_errors(what):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        Path(file.name).replace(path)


def check_answers(what: str, repository: Repository, *, alternative: str = FOLDER) -> None:
    """Raise UnavailableError where the Hub can't be asked for what its cache does not have."""
    if repository.unavailable_reason:
        raise UnavailableError(_not_here(repository.unavailable_reason, what, alternative))


def find_dataset(what: str, name: str, revision: str | None, *, alternative: str) -> Repository:
    """The data set `name` at one commit. Raises UnavailableError where that is not known without the Hub."""
    if _is_path(name):
        raise InputError(f"{what} is no name on the Hub: {alternative}")
    return _find(what, name, revision, "dataset", alternative)


def _cache(name: str, kind: Kind) -> Path:
    """The folder of a repository in the Hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / "--".join([f"{kind}s", *name.split("/")])


def _find(
    what: str,
    name: str,
    revision: str | None,
    kind: Kind,
    alternative: str,
    question: str = "",
) -> Repository:
    import httpx2
    from huggingface_hub import HfApi, constants, errors

    _prepare_clients()
    api = HfApi()
    try:
        api.repo_info(name, repo_type=kind, revision=revision, timeout=PROBE_TIMEOUT)
        # The same again, but it notes in the cache where the revision stands, for when the Hub is gone.
        return Repository(api.resolve_revision(name, repo_type=kind, revision=revision).resolved)
    except errors.RevisionNotFoundError:
        raise InputError(
            f"{what} has no revision {revision}: give a branch, tag or commit of it"
        ) from None
    except errors.OfflineModeIsEnabled:
        unavailable_reason = "HF_HUB_OFFLINE is set"
    except (OSError, ValueError, httpx2.HTTPError, errors.RevisionResolutionError) as error:
        if not _may_pass(error):
            translated = _translated(what, error, None, alternative)
            absent = isinstance(error, errors.RepositoryNotFoundError)
            raise type(translated)(f"{translated}{question if absent else ''}") from None
        status = _status(error)
        now = f"answers {status}" if status else f"does not answer ({_first_line(error)})"
        unavailable_reason = f"the Hub at {constants.ENDPOINT} {now}"
    try:
        found = api.resolve_revision(name, repo_type=kind, revision=revision, local_files_only=True)
    except errors.RevisionResolutionError:
        raise UnavailableError(
            _not_here(unavailable_reason, what, alternative) + question
        ) from None
    return Repository(found.resolved, unavailable_reason)


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


@contextmanager
def translate_errors(
    what: str, unavailable_reason: str | None = None, *, alternative: str = FOLDER
) -> Iterator[None]:
    """Turn what the Hub's clients raise while loading `what` into errors for the user.

    `unavailable_reason` is that of its `Repository`, and `alternative` what the user can do without the Hub.
    """
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except NeoscopeError:
        raise
    except (
        OSError,
        ValueError,
        httpx2.HTTPError,
        errors.EntryNotFoundError,
        errors.RevisionResolutionError,
    ) as error:
        raise _translated(what, error, unavailable_reason, alternative) from None


def _translated(
    what: str, error: BaseException, unavailable_reason: str | None, alternative: str
) -> NeoscopeError:
    """What an error of the Hub's clients means. They wrap each other's, so that its causes count too."""
    from huggingface_hub import errors

    for cause in _chain(error):
        # datasets hides the cause of its own error.
        if isinstance(cause, errors.GatedRepoError) or "is a gated dataset" in str(cause):
            return InputError(
                f"{what} is gated: ask for access on its page on the Hub, and set HF_TOKEN to a token "
                "that may read it"
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            return InputError(
                f"{what} is not on the Hub, or not for everybody: check the name, or set HF_TOKEN to "
                "a token that may read it"
            )
        if _may_pass(cause):
            status = _status(cause)
            now = f"the Hub answers {status}" if status else "the Hub does not answer"
            return UnavailableError(_not_here(unavailable_reason or now, what, alternative))
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            return InputError(
                f"{what} cannot be loaded ({cause.strerror}: {cause.filename}): if that is the Hub's "
                "cache, set HF_HOME to a folder that can be written"
            )
    return InputError(f"{what} cannot be loaded: {_first_line(error)}")


def _may_pass(error: BaseException) -> bool:
    """Whether the Hub may answer the same request another time."""
    import httpx2
    from huggingface_hub import errors

    gone = (
        httpx2.TransportError,
        errors.LocalEntryNotFoundError,
        errors.RevisionResolutionError,
        ConnectionError,
        TimeoutError,
    )
    status = _status(error)
    return isinstance(error, gone) or status in TRY_LATER or (status or 0) >= 500


def _status(error: BaseException) -> int | None:
    from huggingface_hub import errors

    return error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from or during."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def _not_here(unavailable_reason: str, what: str, alternative: str) -> str:
    return (
        f"{unavailable_reason}, and {what} is not on this disk: "
        f"try again when the Hub can be reached, or {alternative}"
    )


def _first_line(error: BaseException) -> str:
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )


@functools.cache
def _prepare_clients() -> None:
    """Let no request of the Hub's clients wait longer for its next byte than downloads do (10 s, or
    HF_HUB_DOWNLOAD_TIMEOUT): many have no timeout at all, and hang for ever where the Hub stalls.

    What they log of each try is left out: what comes of it is an error, and signed URLs are in it.
    """
    import httpx2
    from huggingface_hub import constants, get_session, set_client_factory
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    def bound(request: Any) -> None:
        timeouts = request.extensions.setdefault("timeout", {})
        for step in ("connect", "read", "write", "pool"):
            longest = timeouts.get(step) or constants.HF_HUB_DOWNLOAD_TIMEOUT
            timeouts[step] = min(longest, constants.HF_HUB_DOWNLOAD_TIMEOUT)

    hub_logging.set_verbosity(logging.CRITICAL)
    disable_progress_bars()
    hooks = [*get_session().event_hooks["request"], bound]
    set_client_factory(
        lambda: httpx2.Client(event_hooks={"request": hooks}, follow_redirects=True, timeout=None)
    )


@contextmanager
def loading(what: str, repository: Repository) -> Iterator[None]:
    """Turn what is raised while `what` is loaded into errors for the user.

    transformers, tokenizers and safetensors raise any kind of exception for files that they cannot
    make sense of, and tokenizers a bare one.
    """
    try:
        with translate_errors(what, repository.unavailable_reason):
            yield
    except (NeoscopeError, MemoryError):
        raise
    except Exception as error:
        kind = type(error).__name__
        raise InputError(
            f"{what} cannot be loaded: its files are damaged ({kind}: {error})"
        ) from None
