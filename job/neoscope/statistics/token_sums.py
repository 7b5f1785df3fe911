"""Sums of one layer's values by token: what any property of tokens can be regressed on, and they merge.

In: values [row, neuron] and the token of every row. Out: counts and sums by token id, as bytes and back.
It does not know the store, the model, nor what is derived from the sums; see `token_regression`.

A cell is a token id, and whether it stands first in its sequence (first positions are outliers in many
models, and a reader must be able to leave them out). Special tokens are for the caller to leave out.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from neoscope.errors import CheckError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
# Threads that add the rows of one call, each to neurons of its own: memory's speed bounds more, and fewer
# neurons than these are not worth a thread.
THREADS, NEURONS_A_THREAD = 8, 256
CELLS = 1024  # that are moved to another pivot at a time, so that no copy of all is made for it


@dataclasses.dataclass(frozen=True)
class TokenSums:
    """What is known of a layer at every token that occurs; cells ascend by token, then by `first`.

    Sums are of the differences from `pivot`, a value of each neuron at a first position and one at the
    others, NaN where there is none: float64 sums of plain squares would lose a small spread around a
    large mean.

    Where a run keeps them, `squares` are not there: it knows the variances from its statistics by neuron.
    And where its values are the outputs of a linear map, sums are of the map's inputs, which `weight`
    [neuron, input] and `bias` take to those of the outputs. `of_outputs` gives what a regression needs.
    """

    layer: int
    token: Ints  # [cell]
    first: npt.NDArray[np.bool_]  # [cell], whether of first positions
    count: Ints  # [cell]
    pivot: Floats  # [first_position, neuron]
    total: Floats  # [cell, neuron], of value - pivot
    squares: Floats | None = None  # [first_position, neuron], of (value - pivot)^2
    weight: npt.NDArray[np.float32] | None = None
    bias: npt.NDArray[np.float32] | None = None  # [neuron]

    def __add__(self, other: TokenSums) -> TokenSums:
        """Of all the rows that either has. In another order the sums differ by rounding, no more.

        Raises ValueError where they are not of the same layer of the same model.
        """
        if self.layer != other.layer or self.pivot.shape != other.pivot.shape:
            raise ValueError(
                f"sums of layer {self.layer} {self.pivot.shape} and of layer {other.layer} "
                f"{other.pivot.shape} do not add up"
            )
        for name in ("squares", "weight", "bias"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if (mine is None) != (theirs is None):
                raise ValueError(f"one of the sums has no {name}: they do not add up")
            if name != "squares" and mine is not None and not np.array_equal(mine, theirs):
                raise ValueError(f"sums of inputs of another {name} do not add up")
        keys, places = np.unique(np.concatenate([_keys(self), _keys(other)]), return_inverse=True)
        count = np.zeros(len(keys), np.int64)
        total = np.zeros((len(keys), self.pivot.shape[1]))
        squares = None if self.squares is None else np.zeros_like(self.squares)
        pivot = np.fmin(self.pivot, other.pivot)  # the same, whichever is added to the other
        for part, cells in zip((self, other), np.split(places, [len(self.token)]), strict=True):
            moved = part.about(pivot)
            count[cells] += moved.count
            total[cells] += moved.total
            if squares is not None and moved.squares is not None:
                squares += moved.squares
        return dataclasses.replace(
            self,
            token=keys // 2,
            first=keys % 2 == 1,
            count=count,
            pivot=pivot,
            total=total,
            squares=squares,
        )

    def about(self, pivot: Floats) -> TokenSums:
        """The same sums about another `pivot` [first_position, neuron]."""
        step = np.nan_to_num(self.pivot - pivot)  # where there is no pivot, there are no rows
        squares = self.squares
        if squares is not None:
            squares = squares.copy()
            for place in (0, 1):
                cells = self.first == place
                total, count = self.total[cells].sum(axis=0), self.count[cells].sum()
                squares[place] += 2 * step[place] * total + count * step[place] ** 2
        total = self.total.copy()
        self._move(total, step)
        return dataclasses.replace(self, pivot=pivot, total=total, squares=squares)

    def _move(self, total: Floats, step: Floats) -> None:
        """Make the sums `total` [cell, neuron], in place, those about pivots that are lower by `step`."""
        for start in range(0, len(total), CELLS):
            some = slice(start, start + CELLS)
            total[some] += self.count[some, None] * step[self.first[some].astype(int)]

    def of_outputs(self, rows: Ints, mean: Floats, variance: Floats) -> TokenSums:
        """What a regression needs, where the run has kept the mean and variance of every neuron over all
        its `rows` [first_position]; both [first_position, neuron], NaN where there are no rows.

        With H_v the sum of h - p at token v, and n_v its count, the sums of y - q of outputs y = W h + b are
        W H_v + n_v (W p + b - q). The pivot q is the mean, so that squares are the variances times rows, and
        those of a neuron that does not vary nothing at all. In float64 that is exact to rounding: means by
        token are within 1e-9 of a neuron's standard deviation. Outputs in float32 have rounding of their
        own, of 1e-7 of the size of their terms, which is not in the inputs: where a neuron varies as
        much as its terms, means by token agree within 1e-5 of its standard deviation; where it varies by
        a hundredth of them, a hundred times less closely.
        """
        pivot = self.pivot
        if self.weight is None:
            total = self.total.copy()
        else:
            matrix = self.weight.astype(np.float64)
            total, pivot = self.total @ matrix.T, pivot @ matrix.T
        if self.bias is not None:
            pivot = pivot + self.bias
        self._move(total, np.nan_to_num(pivot - mean))
        squares = np.nan_to_num(rows[:, None] * variance)
        return dataclasses.replace(
            self, pivot=mean, total=total, squares=squares, weight=None, bias=None
        )

    def dump(self) -> bytes:
        """The sums as a safetensors file; what is not there is no tensor of it."""
        from safetensors.numpy import save

        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return save({name: np.asarray(each) for name, each in arrays.items() if each is not None})

    @classmethod
    def load(cls, body: bytes) -> TokenSums:
        from safetensors.numpy import load

        arrays: dict[str, Any] = load(body)
        return cls(**{**arrays, "layer": int(arrays["layer"])})


class TokenAccumulator:
    """The running sums of one layer.

    Rows are added one after another, so the sums do not depend on where batches or restarts divide
    the text, to the last bit. Memory is that of the tokens seen, 8 bytes a token and neuron: of the room
    for `cells` nothing is taken before it is used. Of more cells than that the sums are copied as they
    grow, by a quarter at a time. Without `squares` none are kept.
    """

    def __init__(self, layer: int, *, cells: int = 0, squares: bool = True) -> None:
        self._layer, self._room, self._with_squares = layer, cells, squares
        self._cell_of = np.full(0, -1, np.int64)  # by key; -1 where it was not seen
        self._seen = np.zeros(0, np.int64)  # keys in the order in which they were seen
        self._count = np.zeros(0, np.int64)
        self._pivot, self._total, self._squares = (np.zeros((n, 0)) for n in (2, 0, 2))

    def add(
        self,
        values: npt.NDArray[Any],
        token: npt.NDArray[np.integer[Any]],
        first: npt.NDArray[np.bool_],
    ) -> None:
        """Add `values` [row, neuron], of any float dtype, at the ids `token` [row]; `first` [row] says
        which rows stand first in their sequence. Raises CheckError where a value is not finite."""
        if not len(values):
            return
        if not len(self._seen):
            self._begin(values.shape[1])
        places = first.astype(np.int64)
        for place in (0, 1):
            if np.isnan(self._pivot[place]).all() and (places == place).any():
                self._pivot[place] = values[np.argmax(places == place)]
        cells = self._cells(2 * token.astype(np.int64) + places)
        self._count[: len(self._seen)] += np.bincount(cells, minlength=len(self._seen))
        _add(values, cells, places, self._pivot, self._total, self._squares)
        if not np.isfinite(self._squares).all():
            raise CheckError(f"layer {self._layer} has values that are not finite")

    def sums(self) -> TokenSums:
        """The sums so far, which later rows do not change."""
        order = np.argsort(self._seen)
        keys = self._seen[order]
        return TokenSums(
            self._layer,
            keys // 2,
            keys % 2 == 1,
            self._count[order],
            self._pivot.copy(),
            self._total[order],
            self._squares.copy() if self._with_squares else None,
        )

    def restore(self, sums: TokenSums) -> None:
        """Go on from the state that `sums` gave."""
        self._begin(sums.pivot.shape[1])
        self._cells(_keys(sums))
        self._count[: len(sums.count)], self._pivot = sums.count, sums.pivot.copy()
        self._total[: len(sums.total)] = sums.total
        if sums.squares is not None:
            self._squares = sums.squares.copy()

    def _begin(self, neurons: int) -> None:
        self._pivot = np.full((2, neurons), np.nan)
        self._total = np.zeros((0, neurons))
        self._squares = np.zeros((2, neurons if self._with_squares else 0))

    def _cells(self, keys: Ints) -> Ints:
        """The cell of each key [row], one more for each that is new, in their order."""
        most = int(keys.max(initial=-1)) + 1
        if most > len(self._cell_of):
            more = np.full(most - len(self._cell_of), -1, np.int64)
            self._cell_of = np.concatenate([self._cell_of, more])
        new, where = np.unique(keys[self._cell_of[keys] < 0], return_index=True)
        if len(new):
            new = new[np.argsort(where)]
            self._cell_of[new] = len(self._seen) + np.arange(len(new))
            self._seen = np.concatenate([self._seen, new])
            self._grow(len(self._seen))
        return self._cell_of[keys]

    def _grow(self, cells: int) -> None:
        """Make room for so many cells; what is beyond them stays zero, and is no memory yet."""
        if cells <= len(self._total):
            return
        room = self._room if cells <= self._room else max(cells, len(self._total) * 5 // 4)
        count, total = np.zeros(room, np.int64), np.zeros((room, self._total.shape[1]))
        count[: len(self._count)], total[: len(self._total)] = self._count, self._total
        self._count, self._total = count, total


AddRows = Callable[[npt.NDArray[Any], Ints, Ints, Floats, Floats, Floats, int, int], None]


def _add(
    values: npt.NDArray[Any],
    cells: Ints,
    places: Ints,
    pivot: Floats,
    total: Floats,
    squares: Floats,
) -> None:
    """Add rows in their order, some neurons on each thread: a sum has one order whoever adds it."""
    kernel = _compiled()
    rows = values if values.dtype == np.float64 else values.astype(np.float32, copy=False)
    if kernel is None or rows.dtype != np.float32:
        add_rows(rows, cells, places, pivot, total, squares, 0, rows.shape[1])
        return
    rows, neurons = np.ascontiguousarray(rows), rows.shape[1]
    threads = max(1, min(THREADS, os.cpu_count() or 1, neurons // NEURONS_A_THREAD))
    edges = [neurons * number // threads for number in range(threads + 1)]
    work = functools.partial(kernel, rows, cells, places, pivot, total, squares)
    if threads == 1:
        work(0, neurons)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, edges[:-1], edges[1:]))


def add_rows(
    rows: npt.NDArray[Any],
    cells: Ints,
    places: Ints,
    pivot: Floats,
    total: Floats,
    squares: Floats,
    start: int,
    stop: int,
) -> None:
    """Add the differences of `rows` [row, neuron] from the `pivot` [first_position, neuron] of their
    `places` [row] to `total` [cell, neuron] at their `cells` [row], and their squares to `squares`
    [first_position, neuron] if it has any neurons; neurons `start` to `stop` alone."""
    some = slice(start, stop)
    for row, cell, place in zip(rows[:, some], cells.tolist(), places.tolist(), strict=True):
        away = row - pivot[place, some]
        total[cell, some] += away
        if squares.shape[1]:
            squares[place, some] += away * away


@functools.cache
def _compiled() -> AddRows | None:
    """`add_rows` by numba, with the same bits; None where that is not installed, as where runs are only
    read."""
    try:
        from neoscope.statistics import token_kernels
    except ImportError:
        return None
    kernel: AddRows = token_kernels.add_rows
    return kernel


def _keys(sums: TokenSums) -> Ints:
    return 2 * sums.token + sums.first
