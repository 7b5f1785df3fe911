"""A run, or a part of it, to a destination: every byte is held against what the run recorded of it.

In: a committed run and a destination. Out: a copy that is itself a run, or a selection of its arrays. What
an earlier start has left there is checked and not fetched again. It does not know what the values mean.
"""

from __future__ import annotations

import json
from typing import Any

from neoscope.commands.pull.copy import pull_run
from neoscope.commands.pull.selection import Selection, select
from neoscope.commands.pull.source import VerifiedSource, open_verified_source
from neoscope.errors import UsageError
from neoscope.format.claim import claim_destination
from neoscope.format.layout import CLAIM, SELECTION
from neoscope.progress import Progress
from neoscope.storage.store import Store


def pull(
    source: Store,
    dest: Store,
    *,
    layers: str | None,
    sequences: str | None,
    neurons: str | None,
    form: str,
    progress: Progress,
) -> str:
    """Bring a run, or what is selected of it, to `dest`; what was done, in words.

    `layers`, `sequences` and `neurons` are numbers as `0,3,6-11`, None for all; `form` is `zarr` or
    `safetensors`. Raises ConflictError where `dest` holds anything else, CheckError where a byte of
    the run is not as recorded, InputError where the run is not committed.
    """
    if source.url == dest.url:
        raise UsageError(f"{dest.url} is the run itself: give another destination")
    origin = open_verified_source(source)
    if form == "zarr" and layers is sequences is neurons is None:
        claim_destination(dest, CLAIM, bytes(origin.read(CLAIM)))
        return pull_run(origin, dest, progress)
    selection = select(origin.run.manifest, layers=layers, sequences=sequences, neurons=neurons)
    said = describe(origin, selection)
    body = json.dumps({**said, "form": form}, indent=2).encode() + b"\n"
    if form == "safetensors":
        from neoscope.commands.pull.to_safetensors import pull_files as pull_part
    else:
        from neoscope.commands.pull.to_zarr import pull_group as pull_part
    if form == "safetensors" and not dest.is_local:
        raise UsageError(f"--to safetensors writes to a local folder, not to {dest.url}")
    claim_destination(dest, SELECTION, body)
    pull_part(origin, dest, selection, said, progress)
    return f"{dest.url} holds what was selected of {source.url}, every byte of it as recorded"


def describe(origin: VerifiedSource, selection: Selection) -> dict[str, Any]:
    """The attributes that say what a selection is a selection of."""
    return {
        "selection_of": origin.store.url,
        "selection_content_digest": origin.run.manifest["content_digest"],
        **selection.to_json(),
    }
