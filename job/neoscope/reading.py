"""A committed run as a labelled, lazy dataset.

In: the URL of a run. Out: an `xarray.Dataset`. It does not know how the run was made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    if read_manifest(store) is None:
        raise InputError(
            f"the run at {store.url} is not whole: {status(store).line}; finish it first"
        )
    return open_arrays(store)


def open_arrays(store: Store) -> xarray.Dataset:
    """The dataset of `open_run`, of a run that is known to be committed."""
    import xarray
    from zarr.storage import ObjectStore

    source: Any = ObjectStore(store.backend, read_only=True)
    return xarray.open_dataset(
        source,
        group=GROUP,
        engine="zarr",
        consolidated=False,
        zarr_format=3,
        chunks=None,
    )
