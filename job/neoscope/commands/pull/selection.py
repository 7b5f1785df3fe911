"""Part of a run: which layers, sequences and neurons, and in which stored chunks they lie.

In: what was asked for, and a run's claim. Out: the parts of each array that are wanted, chunk by chunk.
It does not read chunks, nor know where the parts go.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from neoscope.errors import UsageError
from neoscope.format.arrays import ArraySchema
from neoscope.format.layout import TOKEN_IDS, TOKEN_LENGTH
from neoscope.format.manifest import stored_batches, stored_sequences
from neoscope.spec import LAYER, number_ranges

Numbers = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is wanted, each ascending and without repetition: int64 [layer], [sequence], [neuron]."""

    layers: Numbers
    sequences: Numbers
    neurons: Numbers

    def to_json(self) -> dict[str, str]:
        """The numbers as the options give them, in the shortest form."""
        return {
            "selection_layers": number_words(self.layers),
            "selection_sequences": number_words(self.sequences),
            "selection_neurons": number_words(self.neurons),
        }

    def names(self) -> list[str]:
        """The arrays that are wanted: the layers and the tokens'."""
        return [*(f"{LAYER}{layer}" for layer in self.layers), TOKEN_IDS, TOKEN_LENGTH]

    def labels(self, positions: int) -> dict[str, Numbers]:
        """The numbers along each dimension of the layers."""
        everywhere = np.arange(positions, dtype=np.int64)
        return {"sequence": self.sequences, "position": everywhere, "neuron": self.neurons}


@dataclasses.dataclass(frozen=True)
class Piece:
    """The part of one chunk that is wanted, and where it goes, along each dimension."""

    key: str
    source: tuple[slice | Numbers, ...]
    target: tuple[slice, ...]

    def is_whole(self, chunk: tuple[int, ...]) -> bool:
        """Whether all of a chunk of this shape is wanted."""
        return all(
            isinstance(part, slice) and part.stop - part.start == size
            for part, size in zip(self.source, chunk, strict=True)
        )

    def cut(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The part of the chunk's values; a view where the numbers follow each other."""
        for axis, part in enumerate(self.source):
            values = values[(*[slice(None)] * axis, part)]
        return values


def select(
    manifest: dict[str, Any], *, layers: str | None, sequences: str | None, neurons: str | None
) -> Selection:
    """What is asked for as `0,3,6-11`, all where None. UsageError for what the run does not have."""
    kept = manifest["hook"]["layers"] if manifest["spec"]["arrays"] else []
    width = manifest["model"]["neurons"] if kept else 0
    there = stored_sequences(manifest["spec"], stored_batches(manifest))
    return Selection(
        _numbers("--layers", layers, np.array(kept, dtype=np.int64)),
        _numbers("--sequences", sequences, np.flatnonzero(there)),
        _numbers("--neurons", neurons, np.arange(width)),
    )


def pieces(schema: ArraySchema, wanted: tuple[Numbers, ...]) -> Iterator[Piece]:
    """The pieces of an array, one a stored chunk: `wanted` are ascending numbers along each dimension."""
    along = [
        list(_by_chunk(numbers, size)) for numbers, size in zip(wanted, schema.chunks, strict=True)
    ]
    for parts in itertools.product(*along):
        index, source, target = zip(*parts, strict=True)
        yield Piece(schema.key(index), source, target)


def _by_chunk(numbers: Numbers, size: int) -> Iterator[tuple[int, slice | Numbers, slice]]:
    """Along one dimension: each chunk that is needed, the numbers within it, and where they go."""
    begins = np.flatnonzero(np.diff(numbers // size, prepend=-1))
    for part in np.split(numbers, begins[1:]):
        chunk, within = int(part[0]) // size, part % size
        begin = int(np.searchsorted(numbers, part[0]))
        row = slice(int(within[0]), int(within[-1]) + 1)
        together = row.stop - row.start == len(within)
        yield chunk, row if together else within, slice(begin, begin + len(part))


def _numbers(option: str, text: str | None, there: Numbers) -> Numbers:
    """The numbers that `0,3,6-11` names, of those that are there, ascending."""
    if text is None:
        return there
    found: set[int] = set()
    for part in number_ranges(option, text):
        if not len(there) or part[-1] > there[-1]:
            raise _no_number(option, text, part[-1], there)
        found.update(part)
    missing = sorted(found.difference(there.tolist()))
    if missing:
        raise _no_number(option, text, missing[0], there)
    return np.array(sorted(found), dtype=np.int64)


def _no_number(option: str, text: str, number: int, there: Numbers) -> UsageError:
    has = number_words(there) or "none"
    return UsageError(f"{option} {text}: the run has no number {number}; it has {has}")


def number_words(numbers: Numbers) -> str:
    """`0,3,6-11` for ascending numbers."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    return ",".join(
        str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs if len(run)
    )
