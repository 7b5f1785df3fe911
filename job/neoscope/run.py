"""One start of `neoscope run`: what is asked for, what is already there, and only then the work.

In: options and a place. Out: the manifest of a committed run there. A finished or a foreign run is
found out before anything heavy is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neoscope.commit import read_manifest
from neoscope.progress import Progress
from neoscope.records import read_claim
from neoscope.spec import make_spec
from neoscope.storage import open_store
from neoscope.text import describe_file, file_kind


def run(
    output: str,
    options: dict[str, Any],
    *,
    text_paths: list[Path],
    device: str,
    endpoint_url: str | None,
    progress: Progress,
) -> tuple[str, dict[str, Any]]:
    """Make a run at `output` or find it whole; its full URL and its manifest.

    `options` are the fields of `RunSpec` by name, None where not given. `device` is `auto`, `cpu` or
    `cuda`. Every error is a NeoscopeError with its exit code.
    """
    if text_paths:
        file_kind(text_paths)
    spec = make_spec(**options, text=tuple(describe_file(path) for path in text_paths))
    store = open_store(output, endpoint_url=endpoint_url, write=True)
    claim = read_claim(store, spec)
    manifest = read_manifest(store) if claim else None
    if manifest is not None:
        progress.say(f"{store.url} already holds this run, whole: nothing to do")
        return store.url, manifest
    from neoscope.pipeline import make

    manifest = make(
        spec, store, claim=claim, text_paths=text_paths, device=device, progress=progress
    )
    return store.url, manifest
