"""How large |t| of a token property becomes when the property is dealt out to tokens anew.

In: a layer's sums by token, the property, and strata of tokens. Out: plain arrays. It makes no other pass
over values, and does not know the run.

Permuted are values among token types of one stratum, not among occurrences: what a token does may
depend on which token it is, and only its property is put to the question. By Frisch, Waugh and Lovell
the other features need fitting once: with R_v the residual sums of a neuron on them, and x_v what is left
of the permuted property beside them,

    beta = sum x_v R_v / D,   D = sum n_v x_v^2,   e_v = R_v - n_v x_v beta,
    D^2 Var = c sum x_v^2 e_v^2 = c (sum x_v^2 R_v^2 - 2 beta sum n_v x_v^3 R_v + beta^2 sum n_v^2 x_v^4)

(c as in "CR1"), so that a batch of permutations is three matrix products. t and not beta is compared, so
that a neuron or token with more spread is no more often the largest (Janssen 1997), and the largest
over all neurons holds for any of them (Westfall and Young 1993).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from neoscope.errors import UsageError
from neoscope.statistics.token_regression import Design, Floats, Tokens

# Permutations and neurons of one product: what both need in memory is tens of MB.
PERMUTATIONS, NEURONS = 128, 512
# Of two t that are the same but for rounding, neither is the larger one.
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Dealt:
    """A property [token] and how it is dealt out; `order` [permutation, token] are the tokens whose
    values each token is given, 4 bytes each."""

    rest: Design  # of the other features
    values: Floats
    order: npt.NDArray[np.int32]

    @classmethod
    def of(
        cls, rest: Design, values: Floats, strata: npt.NDArray[np.int64], *, times: int, seed: int
    ) -> Dealt:
        """Raises UsageError where no stratum [token] has two values to permute."""
        by_stratum = np.argsort(strata, kind="stable")
        starts = np.flatnonzero(np.diff(strata[by_stratum], prepend=-1))
        low, high = (each.reduceat(values[by_stratum], starts) for each in (np.minimum, np.maximum))
        if (low == high).all():
            raise UsageError("within each stratum all tokens have one value: nothing to permute")
        random = np.random.default_rng(seed)
        order = np.empty((times, len(values)), np.int32)
        for each in order:
            each[by_stratum] = np.lexsort((random.random(len(values)), strata))
        return cls(rest, values, order)

    def layer(self, tokens: Tokens) -> tuple[Floats, Floats, Floats]:
        """`t` [neuron], the share `p` [neuron] of permutations, this one counted, in which |t| is as large,
        and the `largest` |t| [permutation] of the layer's neurons. NaN for one that does not vary."""
        times, neurons = len(self.order), len(tokens.mean)
        t, p, largest = np.empty(neurons), np.empty(neurons), np.zeros(times)
        for start in range(0, neurons, NEURONS):
            some = slice(start, start + NEURONS)
            left = self.rest.residuals(tokens.only(some))
            squares = left**2
            t[some] = self._t(self.values[None], left, squares)[0]
            as_large = np.ones_like(t[some])
            for first in range(0, times, PERMUTATIONS):
                batch = slice(first, first + PERMUTATIONS)
                dealt = np.abs(self._t(self.values[self.order[batch]], left, squares))
                as_large += (dealt >= np.abs(t[some]) * (1 - ROUNDING)).sum(axis=0)
                largest[batch] = np.fmax(largest[batch], np.fmax.reduce(dealt, axis=1))
            p[some] = np.where(np.isnan(t[some]), np.nan, as_large / (times + 1))
        return t, p, largest

    def _t(self, values: Floats, left: Floats, squares: Floats) -> Floats:
        """t [permutation, neuron] of `values` [permutation, token]."""
        count, q = self.rest.count, self.rest.q
        root = np.sqrt(count)
        scaled = values * root
        x = (scaled - (scaled @ q) @ q.T) / root
        spread = x**2 @ count
        beta = (x @ left) / spread[:, None]
        of_square = x**2
        meat = of_square @ squares - 2 * beta * ((x * of_square * count) @ left)
        meat += beta**2 * (of_square**2 @ count**2)[:, None]
        types, rows, number = len(count), count.sum(), q.shape[1] + 1
        factor = types / (types - 1) * (rows - 1) / (rows - number)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(beta * spread[:, None] / np.sqrt(factor * np.maximum(meat, 0)))


def adjusted(t: Floats, largest: Floats) -> Floats:
    """The share of permutations, this one counted, whose `largest` |t| [permutation] is as large as each
    |t|: a p that holds for all neurons together. Of the shape of `t`, NaN where it is."""
    ascending = np.sort(largest)
    below = np.searchsorted(ascending, np.abs(t) * (1 - ROUNDING))
    return np.where(np.isnan(t), np.nan, (1 + len(largest) - below) / (len(largest) + 1))


def frequency_deciles(count: Floats) -> npt.NDArray[np.int64]:
    """[token], 0 to 9: the tenth of all token types that each is in by how often it occurs. Tokens
    that occur equally often are in the same one."""
    return np.searchsorted(np.sort(count), count) * 10 // len(count)
