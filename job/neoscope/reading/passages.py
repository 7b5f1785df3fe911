"""The passages of a run's text at which a neuron's value is highest or lowest.

In: the URL of a committed run, a layer and a neuron. Out: passages, read as parts of chunks. It does not
know how they are shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import xarray as xr

from neoscope.argument_checks import check_flag, check_number
from neoscope.errors import CheckError, InputError
from neoscope.format.layout import TOKEN_IDS
from neoscope.format.manifest import stored_batches
from neoscope.format.records import read_claim
from neoscope.reading.dataset import open_arrays, open_neurons_of, open_store_of, vocabulary
from neoscope.reading.document_spans import DocumentSpans
from neoscope.reading.status import committed
from neoscope.spec import LAYER
from neoscope.statistics import by_neuron
from neoscope.storage.store import Store, concurrent_map

COUNT, BEFORE, AFTER = 10, 24, 8


@dataclasses.dataclass(frozen=True)
class Passage:
    """Part of one sequence of a run.

    `value` is the neuron's activation at `tokens[peak]`, which is `token` in the run's flattened
    `token_ids`, and stands at `sequence` and `position`, in the `document` with this id (None where it is
    of none). `tokens` are strings. `values` are the neuron's at each of them; None where the run has no
    arrays.
    """

    value: float
    token: int
    sequence: int
    position: int
    document: str | None
    tokens: list[str]
    peak: int
    values: list[float] | None


def contexts(
    url: str,
    layer: int,
    neuron: int,
    count: int = COUNT,
    before: int = BEFORE,
    after: int = AFTER,
    lowest: bool = False,
    *,
    first_positions: bool = True,
    endpoint_url: str | None = None,
) -> list[Passage]:
    """The passages at which a neuron's value is highest, or lowest, one of each sequence, the best first.

    `layer` is the model's number. Each passage has at most `before` tokens before the peak and `after`
    behind it, of its own sequence. There are fewer than `count` where the run has fewer sequences.
    `first_positions=False` leaves the tokens out that stand first in a sequence.

    Raises InputError where the run is not committed or has no such neuron, UsageError for more than the
    run keeps (`--contexts`).
    """
    count, lowest = check_number("count", count, 1), check_flag("lowest", lowest)
    layer, neuron = check_number("layer", layer), check_number("neuron", neuron)
    store = open_store_of(url, endpoint_url)
    neurons = select_neuron(store, layer, neuron)
    found = by_neuron.contexts(neurons, count=count, lowest=lowest, first_positions=first_positions)
    return PassageReader(store, before=before, after=after).read(layer, neuron, found)


def select_neuron(store: Store, layer: int, neuron: int) -> xr.Dataset:
    """What is known of one neuron, loaded. Raises InputError where there is no such neuron."""
    neurons = open_neurons_of(store)
    layers = neurons.layer.values.tolist()
    if layer not in layers:
        raise InputError(f"the run at {store.url} has no layer {layer}: it has {layers}")
    if not 0 <= neuron < neurons.sizes["neuron"]:
        raise InputError(
            f"the run at {store.url} has no neuron {neuron}: each layer has 0 to "
            f"{neurons.sizes['neuron'] - 1}"
        )
    return neurons.sel(layer=layer).isel(neuron=neuron).load()


class PassageReader:
    """Reads the passages around tokens of one run; what they share is read once."""

    def __init__(self, store: Store, *, before: int = BEFORE, after: int = AFTER) -> None:
        self.before = check_number("before", before, 0)
        self.after = check_number("after", after, 0)
        manifest, claim = committed(store), read_claim(store)
        if claim is None:
            raise CheckError(f"{store.url} was deleted while it was read")
        self._arrays = open_arrays(store)
        self._strings = vocabulary(store, manifest)
        self._documents = DocumentSpans(store, claim, stored_batches(manifest))
        self.positions: int = claim["spec"]["positions"]
        self.has_values: bool = claim["spec"]["arrays"]

    def read(self, layer: int, neuron: int, found: xr.Dataset) -> list[Passage]:
        """The passages around each `token` [context] of `by_neuron.contexts` of this neuron."""
        there = found.token.values >= 0
        tokens = found.token.values[there].tolist()

        def values(token: int) -> npt.NDArray[np.float32]:
            sequence, window = self.window(token)
            part = self._arrays[f"{LAYER}{layer}"][sequence, window, neuron]
            return np.asarray(part.values, np.float32)

        rows = concurrent_map(values, tokens) if self.has_values else [None] * len(tokens)
        return [
            self.passage(token, value, self.row(token), row)
            for token, value, row in zip(
                tokens, found.value.values[there].tolist(), rows, strict=True
            )
        ]

    def window(self, token: int) -> tuple[int, slice]:
        """The sequence of a token, and the positions of its passage."""
        sequence, position = divmod(token, self.positions)
        stop = min(position + self.after + 1, self.positions)
        return sequence, slice(max(position - self.before, 0), stop)

    def row(self, token: int) -> list[str]:
        """The strings of the passage around a token."""
        sequence, window = self.window(token)
        ids = self._arrays[TOKEN_IDS][sequence, window].values
        if ids.min() < 0:  # what a missing chunk reads as
            raise CheckError(f"a chunk of {TOKEN_IDS} is missing: see neoscope verify")
        return [str(text) for text in self._strings[ids]]

    def passage(
        self, token: int, value: float, tokens: list[str], values: Iterable[float] | None
    ) -> Passage:
        sequence, window = self.window(token)
        position = token % self.positions
        return Passage(
            value,
            token,
            sequence,
            position,
            self._documents.id_of(token),
            tokens,
            position - window.start,
            None if values is None else [float(each) for each in values],
        )
