"""One start of a run, by the command or from Python: what is asked for, what is already there, and only
then the work.

In: options and a place. Out: the manifest of a committed run there, or how far it is. A finished or
a foreign run is found out before anything heavy is imported.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neoscope.arguments import check_choice, check_flag, check_name, check_number
from neoscope.errors import InputError, UsageError
from neoscope.extra import require_run
from neoscope.format.claim import check_place
from neoscope.format.layout import CLAIM
from neoscope.format.manifest import read_manifest
from neoscope.format.records import read_claim
from neoscope.format.statistics import clear_superseded, last_state
from neoscope.model.device import check_device
from neoscope.model.shapes import check_shape
from neoscope.pipeline.commit import commit
from neoscope.progress import Progress
from neoscope.spec import DEVICES, RunSpec, make_spec
from neoscope.storage.store import Store, open_store
from neoscope.text.documents import check_shares, describe_file, file_kind
from neoscope.text.packing import TooLittleText

INDEX_VARIABLE = "JOB_COMPLETION_INDEX"  # set by Kubernetes for each pod of an Indexed Job


def run(
    output: str | Path,
    *,
    text: str | Path | Sequence[str | Path] = (),
    partition: int | str = 0,
    device: str = "auto",
    endpoint_url: str | None = None,
    sign_payload: bool = False,
    quiet: bool = False,
    **options: Any,
) -> dict[str, Any] | None:
    """Make a run at `output`, as the command `neoscope run` does; its manifest.

    `output` is `s3://bucket/prefix` or a folder, and what `open_run` takes. Every option of the command
    is an argument of the same name, `--store-dtype float16` as `store_dtype="float16"` and `--no-arrays`
    as `arrays=False`; `text` is one file or a list of them, and `layers` are words, `"0,3,6-11"`, or a
    list of numbers. Options in the environment (NEOSCOPE_...) are not read.

    The same call again finishes what was broken off, or gives the manifest of what is there. Returns
    None while partitions of other workers are missing. Says on standard error what it does, unless
    `quiet`. Every error is a NeoscopeError, of the class that has the command's exit code.
    """
    check_choice("device", device, DEVICES)
    if not isinstance(partition, str):
        partition = str(check_number("partition", partition, 0))
    _, manifest = start(
        check_name("output", output),
        options,
        partition=partition,
        text_paths=_paths(text),
        device=device,
        endpoint_url=None if endpoint_url is None else check_name("endpoint_url", endpoint_url),
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
    text_paths: list[Path],
    device: str,
    endpoint_url: str | None,
    sign_payload: bool,
    progress: Progress,
) -> tuple[str, dict[str, Any] | None]:
    """Make one partition's share of a run at `output`, and commit the run if that was the last.

    Returns the full URL, and the manifest or None while other partitions are missing. `options` are
    the fields of `RunSpec` by name, None where not given; `partition` is a number or `auto`;
    `device` is `auto`, `cpu` or `cuda`. Every error is a NeoscopeError with its exit code.
    """
    require_run("neoscope run")
    spec = spec_of(options, text_paths)
    share = pick_partition(spec, partition)
    store = open_store(output, endpoint_url=endpoint_url, sign_payload=sign_payload, write=True)
    claim = read_claim(store, spec)
    if claim and (manifest := read_manifest(store)):
        progress.say(f"{store.url} already holds this run, whole: nothing to do")
        # What a worker left that was killed when another had committed.
        store.clear_temporary_files()
        clear_superseded(store, claim["spec"])
        return store.url, manifest
    if claim is None:
        check_place(store, CLAIM)  # once more as it is claimed, but the model is loaded in between
    last, cells = last_state(store, claim, share) if claim else (None, None)
    if last:
        progress.say(f"going on after batch {last['batches']} of {spec.batches}")
    if claim is None or last is None or last["batches"] < spec.batches:
        check_device(device)
        if claim is None:
            check_shares(spec)
            check_shape(spec)
        from neoscope.pipeline.partition import store_partition

        try:
            claim = store_partition(
                spec,
                store,
                partition=share,
                claim=claim,
                last=last,
                cells=cells,
                text_paths=text_paths,
                device=device,
                progress=progress,
            )
        except TooLittleText as error:
            raise _with_the_place(error, store) from None
    progress.say("committing")
    return store.url, commit(store, claim)


def _with_the_place(error: TooLittleText, store: Store) -> InputError:
    """The error, with what is to be done of a claim that is for more text than there is."""
    if read_claim(store) is None:
        return error
    return InputError(f"{error}, and give another output, or first: neoscope delete {store.url}")


def spec_of(options: dict[str, Any], text_paths: list[Path]) -> RunSpec:
    """The spec that options and local files make. Raises UsageError, InputError."""
    if text_paths:
        file_kind(text_paths)
    return make_spec(**options, text=tuple(describe_file(path) for path in text_paths))


def pick_partition(spec: RunSpec, partition: str) -> int:
    """The number of this worker's partition. Raises UsageError where it is not one of the run's."""
    option = f"--partition {partition}"
    if partition == "auto":
        partition = os.environ.get(INDEX_VARIABLE, "")
        if not partition:
            raise UsageError(f"{option}: {INDEX_VARIABLE} is not set; give a number")
        option += f" ({INDEX_VARIABLE}={partition})"
    if not partition.isdecimal() or int(partition) >= spec.partitions:
        raise UsageError(
            f"{option} is not one of the {spec.partitions} partitions: "
            f"give 0 to {spec.partitions - 1}, or more --partitions"
        )
    return int(partition)
