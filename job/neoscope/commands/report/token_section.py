"""What a report says of neurons and tokens: is it length, or which token it is?

In: a committed run. Out: plain numbers for `token_section.html.jinja` and `figures.token_shares`, or why
there are none. Each layer's sums are made once and let go. It does not know the rest of the page.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neoscope.errors import InputError, UsageError
from neoscope.format.layout import PARTITION_TOKEN_SUMS
from neoscope.progress import Progress
from neoscope.reading import by_token
from neoscope.reading.stored_tokens import features_of, sums_of
from neoscope.statistics.token_permutation import Dealt
from neoscope.statistics.token_regression import Tokens
from neoscope.statistics.token_sums import TokenSums
from neoscope.storage.store import Store

PROPERTIES = ["length", "log_frequency"]
SHARES = ("token", "both", "frequency", "length")
SEED, LEVEL, SIGNIFICANT = 0, 0.05, 1.96
STRONGEST = 12  # neurons in the table


class Unanswerable(Exception):
    """Why a run does not answer it, for the page to say."""


def token_section(
    store: Store, manifest: dict[str, Any], *, permutations: int, progress: Progress
) -> dict[str, Any]:
    """The numbers of the section: plain ints, floats, strings, lists and dictionaries.

    `shares` has for each layer the median over neurons of the share of variance that goes with the token
    at all, with length and frequency together, and with each alone; `medians` the same over all layers,
    with `added`, what length adds to frequency, and `chance`, which share goes with the token at all
    where it does not matter; `naive` and `honest` (CR3) the median |t| of length beside frequency and
    the share of neurons beyond 1.96; `above` the neurons whose |t| passes the threshold of
    `by_token.permute`, the largest first. None for a share of neurons none of which vary.

    Raises Unanswerable for a run with neither arrays nor sums by token, or whose tokens are too few or too
    much alike.
    """
    spec = manifest["spec"]
    if spec["arrays"]:
        what, sizes = "arrays by token", (e["stored_bytes"] for e in manifest["arrays"].values())
    elif PARTITION_TOKEN_SUMS in manifest:
        kept = manifest[PARTITION_TOKEN_SUMS]["objects"].values()
        what, sizes = "sums by token", (entry["size"] for entry in kept)
    elif spec[PARTITION_TOKEN_SUMS]:
        raise Unanswerable("all its tokens are special ones")
    else:
        raise Unanswerable("it keeps neither activations (--no-arrays) nor --token-sums")
    progress.say(f"reading {sum(sizes) / 1e9:,.2f} GB of {what}; --no-tokens leaves that out")
    progress.begin("by token", len(manifest["hook"]["layers"]), "layers")
    try:
        parts = _of_layers(store, permutations, progress)
    finally:
        progress.end()
    found = by_token.judged(xr.concat(parts, "layer", combine_attrs="override"), LEVEL)
    medians = {name: _number(found[f"r2_{name}"].median()) for name in (*SHARES, "added")}
    return {
        "occurrences": found.occurrences,
        "token_types": found.token_types,
        "times": permutations,
        "neurons": found.t.size,
        "layers": [int(layer) for layer in found.layer],
        "shares": {
            name: [_number(each) for each in found[f"r2_{name}"].median("neuron").values]
            for name in SHARES
        },
        "medians": {**medians, "chance": (found.token_types - 1) / (found.occurrences - 1)},
        "naive": _judgement(found.naive_t),
        "honest": _judgement(found.honest_t),
        "threshold": _number(found.threshold),
        "above_count": int(found.above.sum()),
        "above": _strongest(found),
    }


def _of_layers(store: Store, permutations: int, progress: Progress) -> list[xr.Dataset]:
    table = features_of(store)[PROPERTIES]
    parts: list[xr.Dataset] = []
    dealt: Dealt | None = None
    for sums in sums_of(store):
        dealt = dealt or _dealt(sums, table, permutations)
        parts.append(_of_layer(sums, table, dealt))
        progress.advance(f"layer {sums.layer} by token")
    return parts


def _dealt(sums: TokenSums, table: pd.DataFrame, permutations: int) -> Dealt:
    """The permutations for all layers, whose tokens are those of this one."""
    try:
        tokens = Tokens.of(sums, first_positions=True)
        return by_token.deal(
            table, tokens, of="length", within=by_token.DECILES, times=permutations, seed=SEED
        )
    except (InputError, UsageError) as error:
        raise Unanswerable(f"the text is too short for it ({error})") from None


def _of_layer(sums: TokenSums, table: pd.DataFrame, dealt: Dealt) -> xr.Dataset:
    fit = by_token.regress(sums, table, errors="CR3")
    t, _, largest = dealt.layer(Tokens.of(sums, first_positions=True))
    length, frequency = (fit.sel(feature=name, drop=True) for name in PROPERTIES)
    return xr.Dataset(
        {
            "naive_t": length.naive_t,
            "honest_t": length.t,
            "r2_token": fit.r2_token,
            "r2_both": fit.r2,
            "r2_frequency": frequency.r2_alone,
            "r2_length": length.r2_alone,
            "r2_added": length.r2_added,
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
