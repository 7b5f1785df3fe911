"""What a run says at its end: the manifest in a form that a person enjoys.

In: a manifest. Out: lines of text. It computes nothing that the manifest does not have.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neoscope.commands.how_to_open import opening
from neoscope.commands.pull.selection import number_words
from neoscope.format.manifest import stored_batches, text_name
from neoscope.spec import LAYER


def summary(manifest: dict[str, Any], url: str, endpoint_url: str | None) -> str:
    """The end of a run in about twenty lines, with the lines that open it from Python."""
    tokens, text, model = manifest["tokens"], manifest["text"], manifest["model"]
    lines = [
        "",
        f"{model['name']} on {text_name(text)}: {tokens['count']:,} tokens of "
        f"{text['document_count']:,} documents, {tokens['sequences']:,} sequences of "
        f"{tokens['positions']}",
        *_weights_warning(model),
        *_missing(manifest),
        "",
        *_length_table(tokens["length"]),
        "",
        *_stored(manifest),
        f"checked: {_checked(manifest['checks'])}",
        *_seconds(manifest["timings"]),
        f"stored:  {url}",
        *opening(manifest, url, endpoint_url),
    ]
    return "\n".join(lines)


def _missing(manifest: dict[str, Any]) -> list[str]:
    """What a run lacks whose text has ended early."""
    found = stored_batches(manifest)
    short = sum(count < manifest["batches"] for count in found)
    if not short:
        return []
    total = manifest["batches"] * manifest["partitions"]
    return [
        f"the text of {short} of {len(found)} partitions ended early: {sum(found):,} of {total:,} batches "
        "are there, and open_run leaves the others out"
    ]


def _weights_warning(model: dict[str, Any]) -> list[str]:
    if model["weights"] == "pretrained":
        return []
    return ["weights are RANDOM: the activations say nothing about the published model"]


def _length_table(length: dict[str, Any]) -> list[str]:
    """The three groups of tokens by their length against the median."""
    if length["median"] is None:
        return ["every token is a special one: there are no token lengths"]
    rows = [
        f"token length in characters: median {length['median']}, mean {length['mean']:.2f}, "
        f"{length['min']} to {length['max']}",
        f"    {'group':<10}{'length':>8}{'tokens':>12}{'share':>9}",
    ]
    for (name, group), sign in zip(length["groups"].items(), "<=>", strict=True):
        limit = f"{sign} {length['median']}"
        rows.append(f"    {name:<10}{limit:>8}{group['count']:>12,}{group['share']:>9.1%}")
    return rows


def _stored(manifest: dict[str, Any]) -> list[str]:
    """Names, shapes and bytes of what there is now."""
    lines = []
    layers = {name: e for name, e in manifest["arrays"].items() if name.startswith(LAYER)}
    if layers:
        first = next(iter(layers.values()))
        shape = " x ".join(map(str, first["shape"]))
        size = sum(entry["stored_bytes"] for entry in layers.values()) / 1e9
        lines.append(
            f"{_layer_names(manifest['hook']['layers'])}  each [{shape}] {first['dtype']}, "
            f"{size:.2f} GB in all"
        )
    for name, what in (
        ("statistics", "statistics by token length of every layer and neuron"),
        ("neurons", "what every neuron does: moments, histogram and passages"),
        ("token_sums", "sums by token of every layer, for neoscope report and by_token"),
    ):
        if name in manifest:
            size = sum(entry["size"] for entry in manifest[name]["objects"].values()) / 1e6
            lines.append(f"{what}, {size:.1f} MB")
    return lines


def _layer_names(numbers: list[int]) -> str:
    """`MLP_0 ... MLP_11`, or `MLP_0, MLP_3 ... MLP_5` where some between are not there."""
    parts = [part.split("-") for part in number_words(np.array(numbers)).split(",")]
    return ", ".join(" ... ".join(f"{LAYER}{number}" for number in part) for part in parts)


def _checked(checks: dict[str, Any]) -> str:
    if "layers" not in checks:
        return f"{checks['tokens']['found']:,} tokens counted, every value finite"
    return (
        f"{checks['layers']['found']} layers of one shape, every value finite, "
        f"{checks['read_back']['found']} chunks read back equal"
    )


def _seconds(timings: dict[str, float]) -> list[str]:
    steps = ("prepare", "capture", "statistics", "store", "read_back", "commit", "total")
    parts = [f"{step.replace('_', ' ')} {timings[step]:.1f}" for step in steps if step in timings]
    return [f"seconds: {', '.join(parts)}"]
