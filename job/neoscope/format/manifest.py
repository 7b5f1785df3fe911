"""The manifest: what a run says of itself, from its claim and the roll-ups of its records.

In: a claim, and the totals of all partitions. Out: the manifest's content and the Zarr documents, a pure
function of both and of the partitions' statistics. It does not know who commits, nor when.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from neoscope.errors import CheckError
from neoscope.format import arrays, groups, sealed_json
from neoscope.format.arrays import schemas_of
from neoscope.format.layout import MANIFEST, PARTITION_NEURONS, TOKEN_IDS, TOKEN_LENGTH
from neoscope.format.states import kept
from neoscope.format.statistics import GROUPS, merge_partitions
from neoscope.format.totals import Totals
from neoscope.spec import LAYER
from neoscope.statistics import token_lengths
from neoscope.statistics.neurons import constant_layers
from neoscope.storage.store import Store, concurrent_map


def read_manifest(store: Store) -> dict[str, Any] | None:
    """The manifest of the run in a store, None where it is not committed."""
    body = store.get(MANIFEST, sealed_json.intact)
    return None if body is None else sealed_json.load("manifest", body, f"{store.url}/{MANIFEST}")


def stored_batches(manifest: dict[str, Any]) -> list[int]:
    """How many batches each partition of a committed run has."""
    whole = [manifest["batches"]] * manifest["partitions"]
    return list(manifest.get("stored_batches", whole))


def stored_sequences(spec: dict[str, Any], batches: list[int]) -> npt.NDArray[np.bool_]:
    """Whether each sequence of a run is there, whose partitions have so many `batches`."""
    there = np.arange(spec["batches"]) < np.array(batches)[:, None]  # [partition, batch]
    return np.repeat(there.reshape(-1), spec["sequences"])


def manifest_content(
    store: Store, claim: dict[str, Any], totals: Totals
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest but for its timings, and by key every `zarr.json` and what else the commit stores:
    a pure function of claim, records and the states that they name."""
    manifest = _manifest(claim, totals)
    each, group = _attributes(claim, manifest)
    ends = claim["spec"]["text_end"] == "stop"
    stored = stored_sequences(claim["spec"], totals.batches) if ends else None
    documents = arrays.metadata(schemas_of(claim), each, group, stored)
    manifest["zarr"] = {key: hashlib.sha256(body).hexdigest() for key, body in documents.items()}
    manifest["environment"] = totals.environments()
    attributes = {**group, "positions": claim["spec"]["positions"]}
    names = [name for name in GROUPS if name in kept(claim["spec"]) and totals.lengths]

    def make(name: str) -> tuple[dict[str, Any], dict[str, bytes], list[int]]:
        merged = merge_partitions(store, name, claim, totals.states, totals.lengths)
        objects = groups.zarr_objects(GROUPS[name], merged, attributes)
        constant = constant_layers(merged) if name == PARTITION_NEURONS else []
        return groups.manifest_entry(GROUPS[name], merged, objects), objects, constant

    # Both at once: what they read from the store is on its way together.
    for name, (entry, objects, constant) in zip(names, concurrent_map(make, names), strict=True):
        if name == PARTITION_NEURONS:
            manifest["checks"]["constant_layers"] = _constant_layers(claim, constant)
        manifest[name] = entry
        documents |= objects
    return manifest, documents


def _constant_layers(claim: dict[str, Any], constant: list[int]) -> dict[str, Any]:
    """The check that no layer has one value a neuron at every token, as those with indices `constant`."""
    found = [claim["hook"]["layers"][index] for index in constant]
    if found:
        raise CheckError(
            f"every neuron of layers {', '.join(map(str, found))} has one value at all tokens: that is what "
            "memory looks like that no pass has written; nothing is committed: look at the weights and "
            "at --hook"
        )
    return {"expected": [], "found": found, "passed": True}


def text_name(text: dict[str, Any]) -> str:
    """What a claim's text is called: the data set, the sample, or its files, the first three by name."""
    if text["source"] == "sample":
        return "the packaged sample"
    names = [file["name"] for file in text.get("files", [])]
    more = f" and {len(names) - 3} more files" if len(names) > 3 else ""
    return str(text.get("name") or ", ".join(names[:3]) + more)


def _manifest(claim: dict[str, Any], totals: Totals) -> dict[str, Any]:
    """The manifest's content from claim and records."""
    spec, entries = claim["spec"], totals.arrays()
    sequences = spec["sequences"] * sum(totals.batches)
    return {
        "fingerprint": claim["fingerprint"],
        "spec": spec,
        "partitions": spec["partitions"],
        "batches": spec["batches"],
        **({"stored_batches": totals.batches} if spec["text_end"] == "stop" else {}),
        "model": claim["model"],
        "hook": claim["hook"],
        "tokenizer": claim["tokenizer"],
        "text": {**claim["text"], **totals.documents()},
        "tokens": {
            "count": sequences * spec["positions"],
            "sequences": sequences,
            "positions": spec["positions"],
            "special": totals.special_tokens,
            "digest": entries[TOKEN_IDS]["digest"],
            "length": token_lengths.summarize(totals.lengths),
        },
        "arrays": entries,
        "claim": claim["content_digest"],
        "rollups": totals.rollups,
        "checks": _checks(claim, totals, entries),
    }


def _checks(
    claim: dict[str, Any], totals: Totals, entries: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """What must hold before anything is committed, each with the values seen."""
    spec = claim["spec"]
    layers = {name: entry for name, entry in entries.items() if name.startswith(LAYER)}
    rows = spec["sequences"] * spec["batches"] * spec["partitions"]
    stored = spec["sequences"] * sum(totals.batches)
    shape = [rows, spec["positions"], claim["model"]["neurons"]]
    shapes = [entry["shape"] for entry in layers.values()]
    counted = sum(totals.lengths.values()) + totals.special_tokens
    nonfinite = sum(entry["nonfinite"] for entry in entries.values())
    checks: dict[str, dict[str, Any]] = {
        "tokens": {"expected": stored * spec["positions"], "found": counted},
        "nonfinite": {"expected": 0, "found": nonfinite},
    }
    if spec["arrays"]:
        read_back = len(layers) * totals.records
        checks |= {
            "layers": {"expected": len(claim["hook"]["layers"]), "found": len(layers)},
            "shape": {"expected": shape, "found": shapes[0] if shapes else []},
            "values": {"expected": stored * math.prod(shape[1:]), "found": totals.least_values()},
            "read_back": {"expected": read_back, "found": totals.read_back},
        }
    if any(found != shape for found in shapes):
        raise CheckError(f"the layers' shapes differ: {shapes}; nothing is committed")
    for name, check in checks.items():
        check["passed"] = check["expected"] == check["found"]
        if not check["passed"]:
            raise CheckError(
                f"the check {name!r} failed: {check['found']} instead of {check['expected']}; "
                "nothing is committed"
            )
    return checks


def _attributes(
    claim: dict[str, Any], manifest: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """What each array and the group say of themselves, in words, to a reader without neoscope."""
    model, text, hook = claim["model"], claim["text"], claim["hook"]
    every = len(hook["layers"]) == model["layers"]
    layers = "every layer" if every else f"layers {', '.join(map(str, hook['layers']))}"
    common = {
        "model": model["name"],
        "model_revision": model["revision"],
        "weights": model["weights"],
    }
    each: dict[str, dict[str, Any]] = {
        TOKEN_IDS: {
            "description": "Token ids in the model's vocabulary; vocabulary.json has their strings.",
            "tokenizer": claim["tokenizer"]["name"],
        },
        TOKEN_LENGTH: {
            "description": "Characters of the token's own string, the leading space counted; a token "
            "that is part of a character counts 1; 0 for special tokens.",
            "units": "characters",
            "median": manifest["tokens"]["length"]["median"],
        },
    }
    for name in manifest["arrays"]:
        if name.startswith(LAYER):
            layer = int(name.removeprefix(LAYER))
            each[name] = {
                "description": f"{model['neurons']} neurons of layer {layer}, each by {hook['value']}.",
                "hook_point": hook["module"].replace("*", str(layer)),
                "hook_side": hook["side"],
                "layer": layer,
                **common,
            }
    group = {
        "title": f"MLP neurons of {model['name']} on {text_name(text)}",
        "description": f"Every neuron of {layers} at every token, each by {hook['value']}; "
        "token_ids and token_length say which token.",
        "note": "Weights are RANDOM: the values say nothing about the published model."
        if model["weights"] == "random"
        else "Weights are the published ones.",
        **common,
        "text": text["source"],
        "text_revision": text.get("revision"),
        "token_length_median": manifest["tokens"]["length"]["median"],
        "fingerprint": claim["fingerprint"],
    }
    return each, group
