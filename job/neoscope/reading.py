"""A committed run as a labelled, lazy dataset.

In: the URL of a run. Out: an `xarray.Dataset`. It does not know how the run was made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neoscope import stored_statistics
from neoscope.arrays import GROUP
from neoscope.commit import read_manifest
from neoscope.errors import InputError
from neoscope.status import status
from neoscope.storage import Store, open_store

if TYPE_CHECKING:
    import xarray


def open_run(url: str, *, endpoint_url: str | None = None) -> xarray.Dataset:
    """The arrays of a committed run: `MLP_0` ... [sequence, position, neuron], read when selected.

    `token_ids` and `token_length` [sequence, position] are coordinates. `url` is `s3://bucket/prefix`
    or a folder; `endpoint_url` is taken from AWS_ENDPOINT_URL where it is not given. Raises
    InputError where there is no committed run.
    """
    store = open_store(url, endpoint_url=endpoint_url)
    _committed(store)
    return open_arrays(store)


def open_arrays(store: Store) -> xarray.Dataset:
    """The dataset of `open_run`, of a run that is known to be committed."""
    return _open_group(store, GROUP)


def _committed(store: Store) -> dict[str, Any]:
    """The manifest of the run in a store."""
    manifest = read_manifest(store)
    if manifest is None:
        raise InputError(
            f"the run at {store.url} is not whole: {status(store).line}; finish it first"
        )
    return manifest


def _open_group(store: Store, group: str) -> xarray.Dataset:
    import xarray
    from zarr.storage import ObjectStore

    source: Any = ObjectStore(store.backend, read_only=True)
    return xarray.open_dataset(
        source,
        group=group,
        engine="zarr",
        consolidated=False,
        zarr_format=3,
        chunks=None,
    )


def open_statistics(url: str, *, endpoint_url: str | None = None) -> xarray.Dataset:
    """The statistics by token length of a committed run; `by_length` says what follows from them.

    `tokens` [first_position, length], `histogram` [layer, first_position, length, bin], `sum` and
    `squared_deviation` [layer, first_position, length, neuron], described in their attributes. Raises
    InputError where there is no committed run, or where it was made with --no-statistics.
    """
    store = open_store(url, endpoint_url=endpoint_url)
    manifest = _committed(store)
    if "statistics" not in manifest:
        raise InputError(f"the run at {store.url} has no statistics: it has --no-statistics")
    return _open_group(store, stored_statistics.GROUP)
