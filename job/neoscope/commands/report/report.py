"""A run as one page for people: what its statistics say, in pictures, and where it comes from.

In: a committed run with statistics. Out: one HTML file that needs no network and reads in light, dark, on
paper and on a phone. It is made from the statistics, the manifest, the vocabulary and the first token
ids; of activations only the section on tokens reads any.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import numpy as np
import xarray as xr

from neoscope.commands.report import figures
from neoscope.commands.report.neuron_section import neuron_section
from neoscope.commands.report.token_section import Unanswerable, token_section
from neoscope.errors import CheckError
from neoscope.format.layout import VOCABULARY
from neoscope.format.manifest import read_manifest, text_name
from neoscope.format.states import kept
from neoscope.progress import Progress
from neoscope.reading.dataset import open_arrays, open_statistics_of, stored_part
from neoscope.statistics import by_length, drawing
from neoscope.storage.store import Store

STRONGEST = 12  # neurons in the table
SAMPLE_TOKENS = 400
FEW = 50  # tokens of a length, below which their mean says little


def report(store: Store, *, permutations: int | None, progress: Progress) -> str:
    """The page of the committed run in `store`; of tokens with so many permutations, or without that
    section for None. Raises InputError where there is no run, or where it has no statistics."""
    import jinja2

    statistics = open_statistics_of(store).load()
    manifest = read_manifest(store)
    if manifest is None:
        raise CheckError(f"{store.url} was deleted while it was read")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["grouped"] = lambda number: f"{number:,}"
    folder = resources.files("neoscope.commands.report")
    environment.loader = jinja2.FunctionLoader(lambda name: (folder / name).read_text("utf-8"))
    template = environment.get_template("template.html.jinja")
    length = manifest["tokens"]["length"]
    counts = {int(at): count for at, count in length["histogram"].items()}
    histograms = by_length.histograms(statistics)
    limits = drawing.limits(histograms)
    correlation = by_length.correlation(statistics)
    strongest = _strongest(correlation)
    on_tokens = _tokens(store, manifest, permutations, progress)
    above = on_tokens["tokens"]["above"] if on_tokens["tokens"] else []
    neurons = None
    if "neurons" in manifest:
        neurons = neuron_section(store, [*strongest, *above], correlation)
    return template.render(
        url=store.url,
        manifest=manifest,
        text_name=text_name(manifest["text"]),
        length=length,
        sizes=_sizes(manifest),
        length_figure=figures.token_lengths(counts, length["median"]),
        limits=limits,
        layer_figures=[
            figures.layer_histogram(layer, histograms.sel(layer=layer), limits)
            for layer in histograms.layer.values.tolist()
        ],
        heat=_heat(statistics),
        correlation_figure=figures.correlations(correlation),
        strongest=strongest,
        neurons=neurons,
        firing_figure=figures.firing(neurons["layers"]) if neurons else None,
        **on_tokens,
        sample=_sample(store, length["median"]),
    )


def _tokens(
    store: Store, manifest: dict[str, Any], permutations: int | None, progress: Progress
) -> dict[str, Any]:
    """What the section on tokens says and shows, or why it is not there."""
    nothing = {"tokens": None, "shares_figure": None}
    if permutations is None:
        return {**nothing, "no_tokens": "this page was made with --no-tokens"}
    try:
        tokens = token_section(store, manifest, permutations=permutations, progress=progress)
    except Unanswerable as reason:
        progress.say(f"no section on tokens: {reason}")
        return {**nothing, "no_tokens": str(reason)}
    figure = figures.token_shares(tokens["layers"], tokens["shares"])
    return {"tokens": tokens, "shares_figure": figure, "no_tokens": None}


def _sizes(manifest: dict[str, Any]) -> dict[str, int]:
    """Stored bytes by kind."""
    return {
        "arrays": sum(entry["stored_bytes"] for entry in manifest["arrays"].values()),
        "statistics": sum(
            entry["size"]
            for name in kept(manifest["spec"])
            for entry in manifest[name]["objects"].values()
        ),
    }


def _heat(statistics: xr.Dataset) -> dict[str, Any]:
    """Mean activation over all neurons by layer and token length, as differences from the layer's
    mean, and each difference's share of the greatest at lengths that have FEW tokens or more."""
    cells = statistics.sum("first_position")
    neurons = statistics.sizes["neuron"]
    tokens = cells.tokens * neurons
    total = cells.total.sum("neuron")
    away = (total / tokens - total.sum("length") / tokens.sum("length")).transpose(
        "layer", "length"
    )
    counts = cells.tokens.values.tolist()
    usual = np.abs(away.values[:, cells.tokens.values >= min(FEW, max(counts))])
    greatest = float(usual.max()) or 1.0
    rows = [
        {
            "layer": layer,
            "cells": [
                {"value": value, "strength": round(min(abs(value) / greatest, 1), 3)}
                for value in away.sel(layer=layer).values.tolist()
            ],
        }
        for layer in away.layer.values.tolist()
    ]
    columns = zip(away.length.values.tolist(), counts, strict=True)
    return {
        "columns": [{"length": at, "tokens": count, "few": count < FEW} for at, count in columns],
        "rows": rows,
        "greatest": greatest,
        "few": FEW,
    }


def _strongest(correlation: xr.DataArray) -> list[dict[str, Any]]:
    """The neurons whose activation goes most with token length, either way."""
    values = np.nan_to_num(correlation.values)
    order = np.argsort(-np.abs(values), axis=None, kind="stable")[:STRONGEST]
    layers, neurons = np.unravel_index(order, values.shape)
    return [
        {"layer": int(correlation.layer[layer]), "neuron": int(neuron), "r": values[layer, neuron]}
        for layer, neuron in zip(layers, neurons, strict=True)
    ]


def _sample(store: Store, median: int) -> list[dict[str, str]]:
    """The first tokens of the run, each with the group it is in."""
    vocabulary = json.loads(store.get(VOCABULARY) or b"{}")["tokens"]
    first = stored_part(open_arrays(store)).isel(sequence=0).isel(position=slice(SAMPLE_TOKENS))
    signs = np.sign(first.token_length.values.astype(int) - median)
    names = {-1: "shorter", 0: "equal", 1: "longer"}
    return [
        {"text": vocabulary[token], "group": names[sign] if length else "special"}
        for token, length, sign in zip(
            first.token_ids.values.tolist(),
            first.token_length.values.tolist(),
            signs.tolist(),
            strict=True,
        )
    ]
