"""One start of a run, by the command or from Python: what is asked for, what is already there, and only
then the work.

In: options and a destination. Out: the manifest of a committed run there, or how far it is. A finished or
a foreign run is found out before anything heavy is imported.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neoscope.argument_checks import check_choice, check_flag, check_name, check_number
from neoscope.errors import InputError
from neoscope.extra import require_run
from neoscope.format.claim import check_destination
from neoscope.format.layout import CLAIM
from neoscope.format.manifest import read_manifest, stored_batches
from neoscope.format.records import read_claim, stored_batch_counts
from neoscope.format.rollups import ended_partitions
from neoscope.format.states import clear_superseded
from neoscope.model.device import check_device
from neoscope.model.shapes import check_shape
from neoscope.pipeline.commit import commit
from neoscope.pipeline.worker import find_share, local_rank
from neoscope.progress import Progress
from neoscope.spec import DEVICES, RunSpec, make_spec
from neoscope.storage.store import Store, open_store
from neoscope.text.documents import check_shares, describe_file, file_kind
from neoscope.text.packing import TooLittleText


def run(
    output: str | Path,
    *,
    text: str | Path | Sequence[str | Path] = (),
    partition: int | str = 0,
    workers: int | None = None,
    device: str = "auto",
    endpoint_url: str | None = None,
    connections: int | None = None,
    sign_payload: bool = False,
    quiet: bool = False,
    **options: Any,
) -> dict[str, Any] | None:
    """Make a run at `output`, as the command `neoscope run` does; its manifest.

    `output` is `s3://bucket/prefix` or a folder, and what `open_run` takes. Every option of the command
    is an argument of the same name, `--store-dtype float16` as `store_dtype="float16"` and `--no-arrays`
    as `arrays=False`; `text` is one file or a list of them, and `layers` are words, `"0,3,6-11"`, or a
    list of numbers. Options in the environment (NEOSCOPE_...) are not read.

    The same call again finishes an interrupted run, or gives the manifest of what is there. Returns
    None while partitions of other workers are missing. Says on standard error what it does, unless
    `quiet`. Every error is a NeoscopeError, of the class that has the command's exit code.
    """
    if not str(device).startswith("cuda:"):
        check_choice("device", device, DEVICES)
    if not isinstance(partition, str):
        partition = str(check_number("partition", partition, 0))
    _, manifest = start(
        check_name("output", output),
        options,
        partition=partition,
        workers=None if workers is None else check_number("workers", workers, 1),
        text_paths=_paths(text),
        device=device,
        endpoint_url=None if endpoint_url is None else check_name("endpoint_url", endpoint_url),
        connections=None if connections is None else check_number("connections", connections, 1),
        sign_payload=check_flag("sign_payload", sign_payload),
        progress=Progress(quiet=check_flag("quiet", quiet)),
    )
    return manifest


def _signature() -> inspect.Signature:
    """That of `run` with every option by its name and default, for `help` and completion."""
    shown = inspect.signature(run)
    *named, rest = shown.parameters.values()
    given = {parameter.name for parameter in named}
    options = [
        rest.replace(
            name=field.name,
            kind=inspect.Parameter.KEYWORD_ONLY,
            # Defaults of a data set do not go with every text: None is what is not given.
            default=None if field.name.startswith("dataset") else field.default,
            annotation=field.type,
        )
        for field in dataclasses.fields(RunSpec)
        if field.name not in given
    ]
    return shown.replace(parameters=[*named, *options])


run.__signature__ = _signature()  # type: ignore[attr-defined]


def _paths(text: Any) -> list[Path]:
    """The text files, of one path or several."""
    paths = [text] if isinstance(text, str | Path) else text
    if not isinstance(paths, Sequence):
        raise InputError(f"text={text!r}: give the path of a file, or a list of them")
    return [Path(check_name("text", path)) for path in paths]


def start(
    output: str,
    options: dict[str, Any],
    *,
    partition: str,
    workers: int | None = None,
    text_paths: list[Path],
    device: str,
    endpoint_url: str | None,
    connections: int | None = None,
    sign_payload: bool,
    progress: Progress,
) -> tuple[str, dict[str, Any] | None]:
    """Make some partitions of a run at `output`, and commit the run if they were the last.

    Returns the full URL, and the manifest or None while other partitions are missing. `options` are
    the fields of `RunSpec` by name, None where not given; `partition` and `workers` are as in
    `worker.find_share`, `device` as in `model.pick_device`. Every error is a NeoscopeError with its
    exit code.
    """
    require_run("neoscope run")
    spec = spec_of(options, text_paths)
    share = find_share(partition, workers, spec.partitions, os.environ)
    if share.line:
        progress.say(share.line)
    store = open_store(output, endpoint_url=endpoint_url, sign_payload=sign_payload, write=True)
    store.use_connections(connections)
    claim = read_claim(store, spec)
    if claim and (manifest := read_manifest(store)):
        progress.say(f"{store.url} already holds this run, whole: nothing to do")
        # What a worker left that was killed when another had committed.
        store.clear_temporary_files()
        clear_superseded(store, claim, stored_batches(manifest))
        return store.url, manifest
    stored = stored_batch_counts(store, share.partitions) if claim else {}
    ended = ended_partitions(store) if claim and spec.text_end == "stop" else set[int]()
    missing = [
        each
        for each in share.partitions
        if spec.batches not in stored.get(each, []) and each not in ended
    ]
    if claim is None:
        # Once more as it is claimed, but the model is loaded in between.
        check_destination(store, CLAIM)
    if missing:
        check_device(device)
        if claim is None:
            check_shares(spec)
            check_shape(spec)
        from neoscope.pipeline.partition import store_partitions

        try:
            claim = store_partitions(
                spec,
                store,
                missing,
                claim=claim,
                stored=stored,
                text_paths=text_paths,
                device=device,
                local=local_rank(os.environ),
                progress=progress,
            )
        except TooLittleText as error:
            raise _with_remedy(error, store) from None
    if claim is None:  # a worker that no partition is left for was here first
        return store.url, None
    progress.say("committing")
    return store.url, commit(store, claim)


def _with_remedy(error: TooLittleText, store: Store) -> InputError:
    """The error, with what is to be done of a claim that is for more text than there is."""
    if read_claim(store) is None:
        return error
    return InputError(f"{error}, and give another output, or first: neoscope delete {store.url}")


def spec_of(options: dict[str, Any], text_paths: list[Path]) -> RunSpec:
    """The spec that options and local files make. Raises UsageError, InputError."""
    if text_paths:
        file_kind(text_paths)
    return make_spec(**options, text=tuple(describe_file(path) for path in text_paths))
