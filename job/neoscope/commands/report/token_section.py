"""What a report says of neurons and tokens: is it length, or which token it is?

In: a committed run that has arrays. Out: plain numbers for `token_section.html.jinja` and
`figures.token_shares`. Each layer's sums are made once and let go. It does not know the rest of the page.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neoscope.reading import by_token
from neoscope.statistics.token_permutation import Dealt
from neoscope.statistics.token_regression import Tokens
from neoscope.statistics.token_sums import TokenSums

PROPERTIES = ["length", "log_frequency"]
SUBSETS = {"length": ["length"], "frequency": ["log_frequency"], "both": PROPERTIES}
TIMES, SEED, LEVEL, SIGNIFICANT = 1000, 0, 0.05, 1.96
STRONGEST = 12  # neurons in the table


def token_section(
    url: str, *, endpoint_url: str | None = None, times: int = TIMES
) -> dict[str, Any]:
    """The numbers of the section: plain ints, floats, strings, lists and dictionaries.

    `shares` has for each layer the median over neurons of the share of variance that goes with the token
    at all, with length alone, frequency alone, and both; `naive` and `honest` (CR3) the median |t| of
    length beside frequency and the share of neurons beyond 1.96; `above` the neurons whose |t| passes
    the threshold of `by_token.permute`, the largest first. None for a share of neurons none of which
    vary.
    """
    table = by_token.features(url, endpoint_url=endpoint_url)[PROPERTIES]
    parts, dealt = [], None
    for sums in by_token.sums(url, endpoint_url=endpoint_url):
        if dealt is None:
            tokens = Tokens.of(sums, first_positions=True)
            dealt = by_token.deal(
                table, tokens, of="length", within=by_token.DECILES, times=times, seed=SEED
            )
        parts.append(_of_layer(sums, table, dealt))
    found = by_token.judged(xr.concat(parts, "layer", combine_attrs="override"), LEVEL)
    return {
        "occurrences": found.occurrences,
        "token_types": found.token_types,
        "times": times,
        "neurons": found.t.size,
        "layers": [int(layer) for layer in found.layer],
        "shares": {
            name: [_number(each) for each in found[f"r2_{name}"].median("neuron").values]
            for name in ("token", *SUBSETS)
        },
        "naive": _judgement(found.naive_t),
        "honest": _judgement(found.honest_t),
        "threshold": _number(found.threshold),
        "above_count": int(found.above.sum()),
        "above": _strongest(found),
    }


def _of_layer(sums: TokenSums, table: pd.DataFrame, dealt: Dealt) -> xr.Dataset:
    fit = by_token.regress(sums, table, errors="CR3")
    r2 = by_token.r2(sums, table, SUBSETS)
    t, _, largest = dealt.layer(Tokens.of(sums, first_positions=True))
    length = fit.sel(feature="length", drop=True)
    return xr.Dataset(
        {
            "naive_t": length.naive_t,
            "honest_t": length.t,
            "r2_token": length.r2_token,
            **{f"r2_{name}": r2.sel(subset=name, drop=True) for name in SUBSETS},
            "t": (("layer", "neuron"), t[None]),
            "largest": (("layer", "permutation"), largest[None]),
        },
        attrs=fit.attrs,
    )


def _judgement(t: xr.DataArray) -> dict[str, float | None]:
    size = np.abs(t.values[np.isfinite(t.values)])
    if not len(size):
        return {"median": None, "significant": None}
    return {"median": float(np.median(size)), "significant": float((size > SIGNIFICANT).mean())}


def _strongest(found: xr.Dataset) -> list[dict[str, Any]]:
    """The neurons above the threshold, at most STRONGEST."""
    size = np.where(found.above.values, np.abs(found.t.values), -1)
    order = np.argsort(-size, axis=None, kind="stable")[: min(STRONGEST, int(found.above.sum()))]
    return [
        {
            "layer": int(found.layer[layer]),
            "neuron": int(found.neuron[neuron]),
            **{name: float(found[name][layer, neuron]) for name in ("t", "naive_t", "p_largest")},
        }
        for layer, neuron in zip(*np.unravel_index(order, size.shape), strict=True)
    ]


def _number(value: Any) -> float | None:
    """None where there is no number, which JSON and a page can say."""
    return float(value) if np.isfinite(value) else None
