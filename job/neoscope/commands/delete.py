"""Deleting a run: the manifest first, so that it is never half there, and the claim last.

In: a store. Out: the number of objects deleted. What does not belong to a run stays.
"""

from __future__ import annotations

from pathlib import Path

from neoscope.errors import InputError
from neoscope.format.layout import CLAIM, FOLDERS, MANIFEST, belongs
from neoscope.storage.store import Store


def delete_run(store: Store) -> tuple[int, int]:
    """Delete the run in `store`; how many objects went, and how many others stay.

    Raises InputError where there is no run. Broken off, it can be repeated.
    """
    keys = {item.key for item in store.objects()}
    if CLAIM not in keys and MANIFEST not in keys:
        raise InputError(f"there is no run at {store.url}: nothing to delete")
    ours = {key for key in keys if belongs(key)}
    metadata = sorted(key for key in ours if key.endswith("/zarr.json"))
    store.delete([MANIFEST])
    store.delete(metadata)  # before any chunk: without them no reader opens what is left
    store.delete(sorted(ours - {MANIFEST, CLAIM, *metadata}))
    store.delete([CLAIM])
    if store.is_local:
        _remove_empty_folders(Path(store.url))
    return len(ours), len(keys - ours)


def _remove_empty_folders(root: Path) -> None:
    """Remove the run's own folders where nothing is left in them; folders are no objects."""
    for name in FOLDERS:
        folders = [root / name, *(root / name).rglob("*")]
        for folder in sorted((path for path in folders if path.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()
