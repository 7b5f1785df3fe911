"""Figures of a run's statistics as SVG that takes its colours from the page.

In: labelled arrays of `by_length` and plain numbers. Out: SVG text to stand in HTML. It does not know the
run, nor the page: each colour is a CSS variable, so that one figure serves light and dark.
"""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from neoscope.statistics.drawing import draw_correlations, draw_histogram, some_layers

# Colours that matplotlib is told, and the CSS variables that stand for them on the page.
INK, MUTED = "#000001", "#000002"
GROUP_COLOURS = {"shorter": "#000003", "equal": "#000004", "longer": "#000005"}
VARIABLES = {INK: "ink", MUTED: "muted", **{colour: name for name, colour in GROUP_COLOURS.items()}}
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def token_lengths(counts: dict[int, int], median: int) -> str:
    """Tokens by length in characters, in the colours of the three groups."""
    with rc_context(STYLE):
        figure, axes = _figure(6.4, 2.8)
        for length, count in counts.items():
            name = "shorter" if length < median else "equal" if length == median else "longer"
            axes.bar(length, count, width=0.8, color=GROUP_COLOURS[name])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("token length, characters")
        axes.set_ylabel("tokens")
        return _svg(figure, f"Bar chart of tokens by length; the median is {median} characters")


def layer_histogram(layer: int, histogram: xr.DataArray, limits: tuple[float, float]) -> str:
    """Density of one layer's activations, a line for each group; `histogram` is [group, bin]."""
    with rc_context(STYLE | {"font.size": 8}):
        figure, axes = _figure(2.6, 1.9)
        draw_histogram(axes, histogram, GROUP_COLOURS)
        axes.set_xlim(*limits)
        axes.yaxis.set_major_locator(MaxNLocator(2))
        axes.set_xlabel("activation", fontsize=8)
        axes.set_ylabel("density", fontsize=8)
        axes.set_title(f"layer {layer}", fontsize=9, loc="left")
        words = f"Density of the activations of layer {layer} for shorter, equal and longer tokens"
        return _svg(figure, words)


def correlations(r: xr.DataArray) -> str:
    """How the neurons' correlations with token length spread in each layer; `r` is [layer, neuron]."""
    with rc_context(STYLE):
        figure, axes = _figure(6.4, 3.2)
        draw_correlations(axes, r, GROUP_COLOURS, MUTED)
        words = (
            "Spread of the correlations of each layer's neurons with token length: the middle half, "
            "the median, and the range from the 1st to the 99th percentile"
        )
        return _svg(figure, words)


def firing(layers: list[dict[str, Any]]) -> str:
    """How often the neurons of each layer fire: `layers` have the `firing` of the neurons at the 5th, 50th
    and 95th percentile."""
    with rc_context(STYLE):
        figure, axes = _figure(6.4, 2.8)
        for each in layers:
            low, middle, high = (100 * share for share in each["firing"])
            axes.plot([each["layer"]] * 2, [low, high], color=GROUP_COLOURS["shorter"], linewidth=6)
            axes.plot(each["layer"], middle, "o", color=GROUP_COLOURS["longer"], markersize=5)
        axes.set_ylim(0, 100)
        axes.set_xticks(some_layers(np.array([each["layer"] for each in layers])))
        axes.set_xlabel("layer")
        axes.set_ylabel("tokens at which it fires, %")
        words = (
            "How often each layer's neurons fire: the median, and the 5th to the 95th percentile"
        )
        return _svg(figure, words)


def token_shares(layers: list[int], shares: dict[str, list[float | None]]) -> str:
    """The median neuron's share of variance in each layer that goes with the `token` at all, with length and
    frequency (`both`), with `frequency` and with `length`; a gap for None and for no share at all, which the
    logarithmic axis has no place for."""
    words = (
        "Share of the variance of each layer's median neuron that goes with which token it is, with "
        "length and frequency together, with frequency alone and with length alone"
    )
    # As the key on the page has them; length and frequency together often run with one of them.
    styles: dict[str, Any] = {
        "token": {"color": INK, "linestyle": "-"},
        "both": {"color": MUTED, "linestyle": "-", "linewidth": 4, "alpha": 0.5},
        "frequency": {"color": GROUP_COLOURS["shorter"], "linestyle": "--"},
        "length": {"color": GROUP_COLOURS["longer"], "linestyle": ":"},
    }
    with rc_context(STYLE):
        figure, axes = _figure(6.4, 3.2)
        for name, style in styles.items():
            percent = [100 * each if each else np.nan for each in shares[name]]
            axes.plot(
                layers, percent, **{"marker": "o", "markersize": 3, "linewidth": 1.6, **style}
            )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_xticks(some_layers(np.array(layers)))
        axes.set_xlabel("layer")
        axes.set_ylabel("share of variance, % (log)")
        return _svg(figure, words)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots()


def _svg(figure: Figure, words: str) -> str:
    """The figure as an SVG element with `words` for those who cannot see it."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": words}):  # so that two figures of a page share no id
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    for colour, name in VARIABLES.items():
        drawn = drawn.replace(colour, f"var(--{name})")
    # Names of parts, the same in every figure; what is referred to has others.
    drawn = re.sub(r' id="[a-z0-9.]+_\d+"', "", drawn)
    body = drawn[drawn.index("<svg ") + 5 :]
    return f'<svg role="img" aria-label="{words}" {body}'
