"""Sums of one layer's values by token: what any property of tokens can be regressed on, and they merge.

In: values [row, neuron] and the token of every row. Out: counts and sums by token id, as bytes and back.
It does not know the store, the model, nor what is derived from the sums; see `token_regression`.

A cell is a token id, and whether it stands first in its sequence (first positions are outliers in many
models, and a reader must be able to leave them out). Special tokens are for the caller to leave out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from neoscope.errors import CheckError

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class TokenSums:
    """What is known of a layer at every token that occurs; cells ascend by token, then by `first`.

    Sums are of the differences from `pivot`, a value of each neuron at a first position and one at the
    others, NaN where there is none: float64 sums of plain squares would lose a small spread around a
    large mean. `squares` has the squares alone, or the products of all pairs of neurons, which
    `through_linear` needs.
    """

    layer: int
    token: npt.NDArray[np.int64]  # [cell]
    first: npt.NDArray[np.bool_]  # [cell], whether of first positions
    count: npt.NDArray[np.int64]  # [cell]
    pivot: Floats  # [first_position, neuron]
    total: Floats  # [cell, neuron], of value - pivot
    squares: Floats  # [first_position, neuron] or [first_position, neuron, neuron]

    def __add__(self, other: TokenSums) -> TokenSums:
        """Of all the rows that either has. In another order the sums differ by rounding, no more."""
        if self.layer != other.layer or self.squares.shape != other.squares.shape:
            raise ValueError(
                f"sums of layer {self.layer} {self.squares.shape} and of layer {other.layer} "
                f"{other.squares.shape} do not add up"
            )
        keys, places = np.unique(np.concatenate([_keys(self), _keys(other)]), return_inverse=True)
        count = np.zeros(len(keys), np.int64)
        total = np.zeros((len(keys), self.pivot.shape[1]))
        squares = np.zeros_like(self.squares)
        pivot = np.fmin(self.pivot, other.pivot)  # the same, whichever is added to the other
        for part, cells in zip((self, other), np.split(places, [len(self.token)]), strict=True):
            moved = part.about(pivot)
            count[cells] += moved.count
            total[cells] += moved.total
            squares += moved.squares
        return TokenSums(self.layer, keys // 2, keys % 2 == 1, count, pivot, total, squares)

    def about(self, pivot: Floats) -> TokenSums:
        """The same sums about another `pivot` [first_position, neuron]."""
        step = np.nan_to_num(self.pivot - pivot)  # where there is no pivot, there are no rows
        squares = self.squares.copy()
        for place in (0, 1):
            cells, away = self.first == place, step[place]
            total, count = self.total[cells].sum(axis=0), self.count[cells].sum()
            if squares.ndim == 2:
                squares[place] += 2 * away * total + count * away**2
            else:
                crossed = np.outer(away, total)
                squares[place] += crossed + crossed.T + count * np.outer(away, away)
        total = self.total + self.count[:, None] * step[self.first.astype(int)]
        return dataclasses.replace(self, pivot=pivot, total=total, squares=squares)

    def dump(self) -> bytes:
        """The sums as a safetensors file."""
        from safetensors.numpy import save

        return save({f.name: np.asarray(getattr(self, f.name)) for f in dataclasses.fields(self)})

    @classmethod
    def load(cls, body: bytes) -> TokenSums:
        from safetensors.numpy import load

        arrays: dict[str, Any] = load(body)
        return cls(**{**arrays, "layer": int(arrays["layer"])})


class TokenAccumulator:
    """The running sums of one layer.

    Rows are added one after another, so the sums do not depend on where batches or restarts divide
    the text, to the last bit; products of pairs, which are matrix products of the rows of one call,
    agree within rounding. Memory is that of the tokens seen, 8 bytes a token and neuron, and up to
    twice as much again while it grows.
    """

    def __init__(self, layer: int, *, products: bool = False) -> None:
        self._layer, self._products = layer, products
        self._keys: dict[int, int] = {}  # of a cell, in the order in which they are seen
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
        if not self._keys:
            self._begin(values.shape[1])
        for place in (0, 1):
            if np.isnan(self._pivot[place]).all() and (first == place).any():
                self._pivot[place] = values[np.argmax(first == place)]
        keys = 2 * token.astype(np.int64) + first
        cells = np.array([self._keys.setdefault(key, len(self._keys)) for key in keys.tolist()])
        self._grow(len(self._keys))
        self._count += np.bincount(cells, minlength=len(self._count))
        if self._products:
            for place in (0, 1):
                away = values[first == place].astype(np.float64) - self._pivot[place]
                self._squares[place] += away.T @ away
        for row, cell, place in zip(
            values, cells.tolist(), first.astype(int).tolist(), strict=True
        ):
            away = row - self._pivot[place]
            self._total[cell] += away
            if not self._products:
                self._squares[place] += away * away
        if not np.isfinite(self._squares).all():
            raise CheckError(f"layer {self._layer} has values that are not finite")

    def sums(self) -> TokenSums:
        """The sums so far, which later rows do not change."""
        keys = np.array(list(self._keys), np.int64)
        order = np.argsort(keys)
        return TokenSums(
            self._layer,
            keys[order] // 2,
            keys[order] % 2 == 1,
            self._count[order],
            self._pivot.copy(),
            self._total[order],
            self._squares.copy(),
        )

    def restore(self, sums: TokenSums) -> None:
        """Go on from the state that `sums` gave."""
        self._keys = {key: cell for cell, key in enumerate(_keys(sums).tolist())}
        self._count, self._pivot = sums.count.copy(), sums.pivot.copy()
        self._total, self._squares = sums.total.copy(), sums.squares.copy()

    def _begin(self, neurons: int) -> None:
        self._pivot = np.full((2, neurons), np.nan)
        self._total = np.zeros((0, neurons))
        self._squares = np.zeros((2, neurons, neurons) if self._products else (2, neurons))

    def _grow(self, cells: int) -> None:
        """Make room for so many cells; what is beyond them stays zero."""
        if cells > len(self._count):
            more = max(cells, len(self._count) * 5 // 4) - len(self._count)
            self._count = np.append(self._count, np.zeros(more, np.int64))
            room = np.zeros((len(self._count), self._pivot.shape[1]))
            room[: len(self._total)] = self._total
            self._total = room


def through_linear(
    inputs: TokenSums, weight: npt.NDArray[Any], bias: npt.NDArray[Any] | None = None
) -> TokenSums:
    """The sums of y = W h + b, from those of h with all products; `weight` [neuron, input], `bias`
    [neuron].

    With H_v and G the sums of h - p at token v and of (h - p)(h - p)', and the pivot q = W p + b of
    the outputs: the sums of y - q are W H_v, those of its squares the diagonal of W G W'. Of
    outputs in float64 that is exact to rounding: means by token are within 1e-9 of a neuron's standard
    deviation, and so is that. Outputs in float32 have rounding of their own, of 1e-7 of the size of their
    terms, which is not in the inputs: where a neuron varies as much as its terms, means by token agree
    within 1e-5 of its standard deviation, and that within 1e-6; where it varies by a hundredth of
    them, a hundred times less closely. Values that were stored as float16 or computed in bfloat16
    are rounded further, and are not what these sums are of.
    """
    if inputs.squares.ndim != 3:
        raise ValueError("the sums are of squares alone: a linear map needs those of all products")
    matrix = weight.astype(np.float64)
    pivot = inputs.pivot @ matrix.T
    if bias is not None:
        pivot += bias
    squares = [np.einsum("nh,nh->n", matrix @ products, matrix) for products in inputs.squares]
    return dataclasses.replace(
        inputs,
        pivot=pivot,
        total=inputs.total @ matrix.T,
        squares=np.maximum(squares, 0),
    )


def _keys(sums: TokenSums) -> npt.NDArray[np.int64]:
    return 2 * sums.token + sums.first
