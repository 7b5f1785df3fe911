"""Least squares of every neuron of a layer on properties of tokens, from sums by token alone.

In: `TokenSums` of values, and features [token, feature]. Out: plain arrays. It does not know the run, nor
what the features are.

All occurrences of token v share its features x_v (the intercept among them), so with n_v occurrences and
S_v, the sum of a neuron's values there,

    A = sum n_v x_v x_v',   beta = A^-1 sum x_v S_v,   RSS = sum y^2 - beta' A beta,

and the errors clustered by token (Liang and Zeger 1986) need nothing else either:

    Var = A^-1 (sum x_v x_v' e_v^2 a_v^2) A^-1,   e_v = S_v - n_v x_v' beta.

"CR1" has a_v^2 = g/(g-1) (n-1)/(n-k), of g tokens with n occurrences and k coefficients, as Stata and
statsmodels have it. "CR3" is the jackknife that leaves out one token at a time (Bell and McCaffrey 2002;
MacKinnon, Nielsen and Webb 2023): all rows of a token are alike, so what its block of the hat matrix does
to its residuals is one number, and a_v^2 = (g-1)/g (1 - l_v)^-2 with its leverage l_v = n_v x_v' A^-1 x_v.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import numpy as np
import numpy.typing as npt

from neoscope.errors import InputError, UsageError
from neoscope.statistics.token_sums import TokenSums

Errors = Literal["CR1", "CR3"]
Floats = npt.NDArray[np.float64]
INTERCEPT = "intercept"
# A feature of which less than this share (in standard deviations) is left beside the ones before it.
COLLINEAR = 1e-7


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A layer's sums by token, first positions joined to the rest or left out.

    `away` are sums of differences from each neuron's `mean` over all rows, `variation` of the squares of
    those differences, and `between` what of it lies between tokens.
    """

    token: npt.NDArray[np.int64]  # [token], ascending
    count: Floats  # [token]
    mean: Floats  # [neuron]
    away: Floats  # [token, neuron]
    variation: Floats  # [neuron]

    @classmethod
    def of(cls, sums: TokenSums, *, first_positions: bool) -> Tokens:
        cells = np.flatnonzero(first_positions | ~sums.first)
        if sums.squares is None:
            raise ValueError(
                "sums without squares are not those of outputs: see TokenSums.of_outputs"
            )
        if not len(cells):
            raise InputError("there are no tokens to regress on")
        if first_positions and sums.first.any():
            # Both about one pivot, that of the other positions where there are any.
            sums = sums.about(np.broadcast_to(sums.pivot[int(sums.first.all())], sums.pivot.shape))
        token, starts = np.unique(sums.token[cells], return_index=True)
        count = np.add.reduceat(sums.count[cells], starts).astype(np.float64)
        away = np.add.reduceat(sums.total[cells], starts, axis=0)
        step = away.sum(axis=0) / count.sum()
        squares = np.asarray(sums.squares)[: 2 if first_positions else 1].sum(axis=0)
        variation = np.maximum(squares - count.sum() * step**2, 0)
        away -= count[:, None] * step
        return cls(token, count, sums.pivot[int(sums.first[cells].all())] + step, away, variation)

    @property
    def rows(self) -> float:
        return float(self.count.sum())

    def only(self, neurons: slice) -> Tokens:
        """The same of some of the neurons."""
        return Tokens(
            self.token,
            self.count,
            self.mean[neurons],
            self.away[:, neurons],
            self.variation[neurons],
        )

    @functools.cached_property
    def between(self) -> Floats:
        """[neuron], of sum n_v (mean of v - mean)^2: what no property of tokens can go beyond."""
        squares: Floats = np.einsum("vn,vn,v->n", self.away, self.away, 1 / self.count)
        return np.minimum(squares, self.variation)


@dataclasses.dataclass(frozen=True)
class Design:
    """Features of tokens, with an intercept before them, and what follows from them alone.

    `q` [token, coefficient] is orthonormal and spans the square root of `count` times the features,
    and `r` [coefficient, feature] are these, centred and scaled, in its terms, the intercept left out;
    `influence` [coefficient, token] are the columns A^-1 x_v: a coefficient is `influence @ S`.
    """

    names: tuple[str, ...]
    count: Floats
    q: Floats
    r: Floats
    influence: Floats

    @classmethod
    def of(cls, names: list[str], features: Floats, count: Floats) -> Design:
        """Of features [token, feature]. Raises UsageError for one that does not vary or that follows
        from others, InputError for fewer tokens than a regression needs."""
        tokens, number = features.shape
        if tokens < number + 2:
            raise InputError(
                f"{tokens} different tokens are too few for {number} features and an intercept: "
                f"{number + 2} are needed"
            )
        center = count @ features / count.sum()
        away = features - center
        scale = np.sqrt(count @ away**2 / count.sum())
        for name, spread, most in zip(names, scale, np.abs(features).max(axis=0), strict=True):
            if spread <= 1e-12 * most:
                raise UsageError(f"the feature {name!r} is the same at every token: leave it out")
        root = np.sqrt(count)[:, None]
        standard = np.column_stack([np.ones(tokens), away / scale])
        q, r = np.linalg.qr(root * standard)
        left = np.abs(np.diag(r)) / np.sqrt(count.sum())
        if (left < COLLINEAR).any():
            name = names[int(np.argmax(left < COLLINEAR)) - 1]
            raise UsageError(f"the feature {name!r} follows from those before it: leave one out")
        inverse = np.linalg.solve(r, (q / root).T)
        influence = inverse / np.append(1, scale)[:, None]
        influence[0] -= center @ influence[1:]
        return cls((INTERCEPT, *names), count, q, r[:, 1:], influence)

    @property
    def leverage(self) -> Floats:
        """[token], l_v: of all occurrences of one token together, between 0 and 1."""
        return np.asarray(np.einsum("vk,vk->v", self.q, self.q))

    @property
    def unscaled(self) -> Floats:
        """[coefficient], the diagonal of A^-1."""
        return np.asarray(self.influence**2 @ self.count)

    def adjustment(self, errors: Errors) -> Floats:
        """[token] or one number, a_v^2. A token that a coefficient of its own fits has no residual, and
        counts for nothing."""
        types, rows = len(self.count), self.count.sum()
        if errors == "CR1":
            return np.asarray(types / (types - 1) * (rows - 1) / (rows - len(self.names)))
        left = np.maximum(1 - self.leverage, 0)
        return np.where(left > 1e-10, (types - 1) / types / np.maximum(left, 1e-10) ** 2, 0)

    def residuals(self, tokens: Tokens) -> Floats:
        """e_v [token, neuron]: what is left of the sums at each token."""
        root = np.sqrt(self.count)[:, None]
        return np.asarray(tokens.away - root * (self.q @ (self.q.T @ (tokens.away / root))))

    def explained(self, tokens: Tokens) -> Floats:
        """[neuron], of the variation about the mean."""
        along = self._along(tokens)
        return np.asarray(np.minimum(np.einsum("kn,kn->n", along, along), tokens.between))

    def explained_alone(self, tokens: Tokens) -> Floats:
        """[feature, neuron], of the same, by each feature without the others; the intercept left out."""
        along = self.r.T @ self._along(tokens)
        return np.asarray(np.minimum(along**2 / (self.r**2).sum(axis=0)[:, None], tokens.between))

    def _along(self, tokens: Tokens) -> Floats:
        """[coefficient, neuron], the sums in terms of `q`."""
        return np.asarray(self.q.T @ (tokens.away / np.sqrt(self.count)[:, None]))


@dataclasses.dataclass(frozen=True)
class Fit:
    """[coefficient, neuron] but where it says otherwise; the naive errors take rows as independent."""

    coefficient: Floats
    standard_error: Floats
    naive_standard_error: Floats
    r2_alone: Floats  # of each feature without the others; NaN of the intercept, as the next is
    r2_added: Floats  # by each feature to the others
    r2: Floats  # [neuron]
    r2_token: Floats  # [neuron]


def fit(design: Design, tokens: Tokens, errors: Errors = "CR1") -> Fit:
    """The regression of every neuron; NaN for errors and shares of one that does not vary."""
    rows, number = tokens.rows, len(design.names)
    left = design.residuals(tokens)
    coefficient = design.influence @ tokens.away
    coefficient[0] += tokens.mean
    explained = design.explained(tokens)
    unexplained = tokens.variation - explained
    naive = np.sqrt(design.unscaled[:, None] * (unexplained / (rows - number)))
    weights = design.influence**2 * design.adjustment(errors)
    added = np.minimum(coefficient**2 / design.unscaled[:, None], explained)
    nothing = np.full(len(tokens.mean), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        varies = np.where(tokens.variation > 0, 1.0, np.nan)
        return Fit(
            coefficient,
            np.sqrt(weights @ left**2) * varies,
            naive * varies,
            np.vstack([nothing, design.explained_alone(tokens) / tokens.variation]),
            np.vstack([nothing, added[1:] / tokens.variation]),
            explained / tokens.variation,
            tokens.between / tokens.variation,
        )
