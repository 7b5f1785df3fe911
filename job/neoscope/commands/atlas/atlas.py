"""The atlas: every neuron of a run as static files that any web server or bucket can serve.

In: a committed run and a destination. Out: `index.html`, `atlas.css` and `atlas.js`, and under `data/` what
they fetch as it is looked at: `run.json`, a table for each layer, and blocks of neurons. It does not know
what is shown how.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from neoscope.commands.atlas.layer import BLOCK, LEVELS, ZERO, Source, make_layer
from neoscope.errors import CheckError, UsageError
from neoscope.format.claim import claim_destination
from neoscope.format.manifest import stored_batches, text_name
from neoscope.format.records import read_claim
from neoscope.progress import Progress
from neoscope.reading.dataset import (
    open_arrays,
    open_neurons_of,
    open_statistics_of,
    vocabulary,
)
from neoscope.reading.document_spans import DocumentSpans
from neoscope.reading.status import committed
from neoscope.spec import number_ranges
from neoscope.storage.store import Store, concurrent_map

CLAIM = "atlas.json"  # put first: which run the files are of
JSON = "application/json"
PAGES = {  # the page last: what it fetches is there
    "atlas.css": "text/css; charset=utf-8",
    "atlas.js": "text/javascript; charset=utf-8",
    "index.html": "text/html; charset=utf-8",
}
HIGHEST, LOWEST = 8, 4  # passages of each neuron


def write_atlas(
    source: Store,
    dest: Store,
    *,
    layers: str | None,
    values: bool,
    progress: Progress,
) -> str:
    """Write the atlas of the run in `source` to `dest`; what was done, in words.

    `layers` are numbers as `0,3,6-11`, None for all. With `values` the stored arrays are read, once, to
    shade passages. Raises InputError where the run is not committed or has no statistics by neuron,
    UsageError for layers that it does not have, ConflictError where `dest` holds anything else.
    """
    manifest = committed(source)
    opened = _open(source, manifest, values)
    chosen = _chosen(layers, opened.neurons.layer.values.tolist())
    said = {"atlas_of": manifest["content_digest"], "layers": chosen, "values": opened.values}
    claim_destination(dest, CLAIM, json.dumps(said).encode())
    progress.begin("writing", len(chosen), "layers")
    objects = 0
    for number in chosen:
        layer = make_layer(opened, number)
        bodies = {f"data/layer-{number}.json": _body(layer.table)}

        def put(item: tuple[str, bytes]) -> None:
            dest.put(*item, JSON)

        blocks = (
            (f"data/layer-{number}/{block['first']}.json", _body(block)) for block in layer.blocks
        )
        objects += sum(1 for _ in concurrent_map(put, [*bodies.items(), *blocks]))
        progress.advance(f"layer {number}")
    progress.end()
    dest.put("data/run.json", _body(_run(source, manifest, opened, chosen)), JSON)
    folder = resources.files("neoscope.commands.atlas")
    for name in PAGES:
        dest.put(name, (folder / name).read_bytes(), PAGES[name])
    return (
        f"{dest.url}/index.html shows {len(chosen)} layers, in {objects + 1 + len(PAGES):,} files"
    )


def _open(store: Store, manifest: dict[str, Any], values: bool) -> Source:
    claim = read_claim(store)
    if claim is None:
        raise CheckError(f"{store.url} was deleted while it was read")
    neurons = open_neurons_of(store)
    kept = neurons.sizes["context"]
    return Source(
        store,
        neurons,
        open_statistics_of(store) if "statistics" in manifest else None,
        open_arrays(store),
        vocabulary(store, manifest),
        DocumentSpans(store, claim, stored_batches(manifest)),
        claim["spec"]["positions"],
        min(HIGHEST, kept),
        min(LOWEST, kept),
        values and claim["spec"]["arrays"],
    )


def _chosen(layers: str | None, there: list[int]) -> list[int]:
    if layers is None:
        return there
    wanted = sorted({number for part in number_ranges("--layers", layers) for number in part})
    unknown = sorted(set(wanted).difference(there))
    if unknown:
        raise UsageError(f"--layers {layers}: the run has no layer {unknown[0]}; it has {there}")
    return wanted


def _run(
    source: Store, manifest: dict[str, Any], opened: Source, layers: list[int]
) -> dict[str, Any]:
    """What all pages share."""
    return {
        "url": source.url,
        "model": manifest["model"]["name"],
        "weights": manifest["model"]["weights"],
        "hook": manifest["hook"]["value"],
        "text": text_name(manifest["text"]),
        "tokens": manifest["tokens"]["count"],
        "layers": layers,
        "neurons": opened.neurons.sizes["neuron"],
        "block": BLOCK,
        "levels": LEVELS,
        "zero": ZERO,
        "lengths": manifest["tokens"]["length"]["histogram"],
        "median": manifest["tokens"]["length"]["median"],
    }


def _body(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
