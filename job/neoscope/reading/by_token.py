"""Is it token length, or which token it is? Neurons by any property of tokens, with honest errors.

In: the URL of a committed run that has arrays, or has kept sums by token (`--token-sums`); or these sums.
Out: tables and labelled arrays. It does not know how sums are made of values, nor how regressions are of
sums.

    url = "s3://bucket/run"
    table = by_token.features(url)[["length", "log_frequency"]]
    by_token.regress(url, table).t.sel(feature="length")  # [layer, neuron]
    by_token.permute(url, table, of="length").above  # [layer, neuron]

All occurrences of a token have one length, so they are no independent witnesses of what length does:
errors are clustered by token. **Position, and what came before a token, do not follow from sums by
token**: they differ between its occurrences, and need the activations themselves (`open_run`).

A `source` is a URL, or what `sums` gave: one or several layers. From a URL the arrays, or the sums, are
read once for each call, a layer at a time. `first_positions=False` leaves the tokens out that stand first
in a sequence. Special tokens are in nothing here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neoscope.errors import UsageError
from neoscope.reading import token_features
from neoscope.reading.stored_tokens import features, sums
from neoscope.statistics import token_permutation
from neoscope.statistics.student import two_sided_p
from neoscope.statistics.token_permutation import ROUNDING, Dealt
from neoscope.statistics.token_regression import Design, Errors, Tokens, fit
from neoscope.statistics.token_sums import TokenSums

__all__ = ["features", "permute", "r2", "regress", "sums"]

Source = str | TokenSums | Iterable[TokenSums]
DECILES = "frequency decile"


def regress(
    source: Source,
    features: pd.DataFrame,
    *,
    errors: Errors = "CR1",
    first_positions: bool = True,
    endpoint_url: str | None = None,
) -> xr.Dataset:
    """Least squares of every neuron on features of its token, over all occurrences.

    `features` has a row for every token id that occurs, and columns of numbers, booleans or categories
    (zeros and ones for each value but the first: `class=digits`); the column `token` is a label. An
    intercept is always there, as the first feature. Where one token alone decides a
    coefficient (a category that no other token has), no error of it means anything.

    Variables [layer, feature, neuron], float64: `coefficient`; `standard_error`, clustered by token; `t`;
    `p`, two-sided, by Student's t with one degree of freedom less than there are tokens;
    `naive_t`, as if all occurrences were independent, to compare; `partial_correlation` with the other
    features held constant; and each feature's own share of the neuron's variance, `r2_alone` without
    the other features, `r2_added` beside them: what `r2` loses where it is left out (the squared
    semipartial correlation). [layer, neuron]: `r2` of all features together, and `r2_token`, of which
    token it is at all, which no property of tokens can go beyond. By chance alone, `r2_token` is
    `(token_types - 1) / (occurrences - 1)` in the mean, attributes both: much of it in a short run.
    NaN for a neuron that does not vary, and for shares of the intercept.

    `errors="CR1"` are those of Stata and of statsmodels' `cov_type="cluster"` (its t distribution with
    `use_t=True`). Where a few tokens carry most of the weight, as they do in text, they are too small:
    `"CR3"`, the jackknife over tokens, comes nearer to the level that `p` states. The formulas stand in
    `token_regression`.

    Raises UsageError for features that do not vary, that follow from others, or that a token lacks, and
    InputError where there are too few tokens.
    """
    if errors not in ("CR1", "CR3"):
        raise UsageError(f"errors={errors!r} must be 'CR1' or 'CR3'")
    layers = _layers(source, first_positions, endpoint_url)
    return _joined([_regressed(layer, tokens, features, errors) for layer, tokens in layers])


def r2(
    source: Source,
    features: pd.DataFrame,
    subsets: Mapping[str, Sequence[str]],
    *,
    first_positions: bool = True,
    endpoint_url: str | None = None,
) -> xr.DataArray:
    """The share of each neuron's variance that goes with each of some subsets of the features.

    float64 [layer, subset, neuron]; `{"length": ["length"], "both": ["length", "log_frequency"]}` names
    subsets of columns. What length adds to frequency is the difference of two of them. NaN for a neuron
    that does not vary. The shares of single features are in `regress` too.
    """
    unknown = sorted(set(itertools.chain(*subsets.values())).difference(features.columns))
    if unknown:
        raise UsageError(f"there is no feature {unknown[0]!r}: {', '.join(features.columns)}")
    found = []
    for layer, tokens in _layers(source, first_positions, endpoint_url):
        shares = np.empty((len(subsets), len(tokens.mean)))
        for share, names in zip(shares, subsets.values(), strict=True):
            chosen = token_features.matrix(features[list(names)], tokens.token)
            with np.errstate(invalid="ignore"):
                share[:] = Design.of(*chosen, tokens.count).explained(tokens) / tokens.variation
        coordinates = {"subset": list(subsets), **_coordinates(layer, tokens)}
        found.append(xr.Dataset({"r2": (("subset", "neuron"), shares)}, coordinates))
    shares_of: xr.DataArray = _joined(found).r2
    return shares_of


def permute(
    source: Source,
    features: pd.DataFrame,
    *,
    of: str = "length",
    within: str | None = DECILES,
    times: int = 1000,
    seed: int = 0,
    level: float = 0.05,
    first_positions: bool = True,
    endpoint_url: str | None = None,
) -> xr.Dataset:
    """How large |t| of one feature becomes when its values are dealt out to the tokens anew.

    Token types and not occurrences are permuted, among those that are alike in `within`: tenths of all
    token types by how often they occur (those that occur equally often in one tenth), a column of
    `features`, or None for all tokens. The other features stay where they are. t is that of `regress` with
    "CR1".

    `t` [layer, neuron]; `p` [layer, neuron], the share of permutations in which the same neuron's |t| is
    as large; `largest` [layer, permutation], the largest |t| of a layer's neurons; `p_largest` [layer,
    neuron], the share in which the largest |t| of all layers and neurons is as large; and
    `above` [layer, neuron], where that is `level` or less: among all of them together, one is there by
    chance in that share of runs at most. NaN, and not above, for a neuron that does not vary. The
    attribute `threshold` is what |t| must be above for it. The formulas stand in `token_permutation`.

    The same permutations are of all layers and depend on `seed`, `times` and the tokens alone. It takes
    4 bytes a permutation and token, and the sums of one layer. Raises UsageError as `regress` does, and
    where nothing can be permuted.
    """
    if times < 1 or not 0 < level < 1:
        raise UsageError(f"times={times} must be 1 or more and level={level} between 0 and 1")
    found: list[xr.Dataset] = []
    dealt: Dealt | None = None
    for layer, tokens in _layers(source, first_positions, endpoint_url):
        if dealt is None:
            dealt = deal(features, tokens, of=of, within=within, times=times, seed=seed)
        elif not np.array_equal(dealt.rest.count, tokens.count):
            raise UsageError(f"layer {layer} has other tokens than the first: give sums of one run")
        t, p, largest = dealt.layer(tokens)
        found.append(
            xr.Dataset(
                {
                    "t": ("neuron", t),
                    "p": ("neuron", p),
                    "largest": ("permutation", largest),
                },
                _coordinates(layer, tokens),
                {**_counts(tokens), "of": of, "within": str(within), "times": times, "seed": seed},
            )
        )
    return judged(_joined(found), level)


def deal(
    features: pd.DataFrame,
    tokens: Tokens,
    *,
    of: str,
    within: str | None,
    times: int,
    seed: int,
) -> Dealt:
    """The permutations of `permute`, for the tokens of any layer."""
    names, values = token_features.matrix(features, tokens.token)
    if of not in names:
        raise UsageError(f"of={of!r} must be one of the features: {', '.join(names)}")
    index = names.index(of)
    Design.of(names, values, tokens.count)  # whether the feature is one beside the others
    others = [name for name in names if name != of]
    rest = Design.of(others, np.delete(values, index, axis=1), tokens.count)
    strata = np.zeros(len(tokens.count), np.int64)
    if within == DECILES:
        strata = token_permutation.frequency_deciles(tokens.count)
    elif within is not None:
        if within not in features.columns:
            raise UsageError(f"within={within!r} must be {DECILES!r}, None or a column of features")
        strata = pd.factorize(features.loc[tokens.token, within])[0].astype(np.int64)
    return Dealt.of(rest, values[:, index], strata, times=times, seed=seed)


def judged(found: xr.Dataset, level: float) -> xr.Dataset:
    """`t` and `largest` of all layers, with what follows from all of them together."""
    over_layers = found.largest.max("layer").values
    p = token_permutation.adjusted(found.t.values, over_layers)
    # Permutations that may be as large; 0.29 of 100 must be 29.
    allowed = int(level * (len(over_layers) + 1) + ROUNDING) - 1
    threshold = np.sort(over_layers)[::-1][allowed] if allowed >= 0 else np.inf
    return found.assign(
        p_largest=(found.t.dims, p), above=(found.t.dims, p <= level + ROUNDING)
    ).assign_attrs(threshold=float(threshold), level=level)


def _regressed(layer: int, tokens: Tokens, features: pd.DataFrame, errors: Errors) -> xr.Dataset:
    design = Design.of(*token_features.matrix(features, tokens.token), tokens.count)
    found = fit(design, tokens, errors)
    coefficient, naive = found.coefficient, found.naive_standard_error
    with np.errstate(invalid="ignore", divide="ignore"):
        t, naive_t = coefficient / found.standard_error, coefficient / naive
        partial = coefficient / np.hypot(
            coefficient, naive * np.sqrt(tokens.rows - len(design.names))
        )
    partial[0] = np.nan  # an intercept has none
    values = {
        "coefficient": coefficient,
        "standard_error": found.standard_error,
        "t": t,
        "p": two_sided_p(t, len(tokens.count) - 1),
        "naive_t": naive_t,
        "partial_correlation": partial,
        "r2_alone": found.r2_alone,
        "r2_added": found.r2_added,
    }
    variables: dict[str, Any] = {name: (("feature", "neuron"), v) for name, v in values.items()}
    return xr.Dataset(
        {**variables, "r2": ("neuron", found.r2), "r2_token": ("neuron", found.r2_token)},
        coords={"feature": list(design.names), **_coordinates(layer, tokens)},
        attrs={**_counts(tokens), "errors": errors},
    )


def _layers(
    source: Source, first_positions: bool, endpoint_url: str | None
) -> Iterator[tuple[int, Tokens]]:
    if isinstance(source, str):
        source = sums(source, endpoint_url=endpoint_url)
    for layer in [source] if isinstance(source, TokenSums) else source:
        yield layer.layer, Tokens.of(layer, first_positions=first_positions)


def _coordinates(layer: int, tokens: Tokens) -> dict[str, Any]:
    return {"layer": layer, "neuron": np.arange(len(tokens.mean))}


def _counts(tokens: Tokens) -> dict[str, int]:
    return {"occurrences": int(tokens.rows), "token_types": len(tokens.count)}


def _joined(found: list[xr.Dataset]) -> xr.Dataset:
    if not found:
        raise UsageError(
            "there are no sums: an iterator of them serves one call, list(...) several"
        )
    return xr.concat(found, "layer", combine_attrs="override")
