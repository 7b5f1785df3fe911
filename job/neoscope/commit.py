"""The commit: from claim and records to the Zarr metadata and the manifest.

In: a run whose partitions are all recorded to the end. Out: `zarr.json` files and last
`manifest.json`, a pure function of claim and records but for timings and environment, so that
workers who race to commit write the same. It does not know how the values were computed.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from typing import Any

from neoscope import arrays, chunks, lengths, sealed, stored_statistics
from neoscope.arrays import GROUP, LAYER, TOKEN_IDS, TOKEN_LENGTH, ArraySchema
from neoscope.errors import CheckError, ConflictError
from neoscope.records import RECORDS, each_record, record_counts, recorded
from neoscope.storage import Store
from neoscope.totals import Totals

MANIFEST = "manifest.json"


def read_manifest(store: Store) -> dict[str, Any] | None:
    """The manifest of the run at a place, None where it is not committed."""
    body = store.get(MANIFEST)
    return None if body is None else sealed.load("manifest", body, f"{store.url}/{MANIFEST}")


def commit(store: Store, claim: dict[str, Any]) -> dict[str, Any] | None:
    """Commit the run and return its manifest; None while a partition is not recorded to the end.

    Raises CheckError where an object is missing or not the recorded one, ConflictError where a
    manifest that says something else is already there.
    """
    began = time.perf_counter()
    spec = claim["spec"]
    found = recorded(store)
    whole = record_counts(spec)
    partitions = range(spec["partitions"])
    if any(found.get(partition, [0])[-1] != spec["batches"] for partition in partitions):
        return None
    for partition in partitions:
        if found[partition] != whole:
            raise CheckError(
                f"{store.url}/{RECORDS} lacks records of partition {partition}: delete the run"
            )
    check, totals = _object_check(store, claim), Totals(claim)
    for partition in partitions:
        for record in each_record(store, claim, partition):
            check(record)
            totals.add(record)
    manifest, documents = manifest_content(store, claim, totals)
    manifest["timings"] = {**totals.timings, "commit": time.perf_counter() - began}
    body = sealed.dump("manifest", manifest)
    stored_statistics.clear_superseded(store, spec)
    # No reader opens anything before all values are there.
    for key in sorted(documents, key=lambda key: key.endswith("zarr.json")):
        _create_same(store, key, documents[key])
    try:
        store.create(MANIFEST, body)
    except FileExistsError:
        theirs = read_manifest(store)
        mine = sealed.load("manifest", body, MANIFEST)
        if theirs is None or theirs["content_digest"] != mine["content_digest"]:
            other = theirs["content_digest"] if theirs else "nothing"
            raise ConflictError(
                f"{store.url}/{MANIFEST} is already there and says something else: "
                f"content {other}, here {mine['content_digest']}; give another output"
            ) from None
        return theirs
    store.clear_temporary_files()
    return sealed.load("manifest", body, MANIFEST)


def manifest_content(
    store: Store, claim: dict[str, Any], totals: Totals
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest but for its timings, and by key every `zarr.json` and what else the commit stores:
    a pure function of claim, records and the cells that they name."""
    manifest = _manifest(claim, totals)
    each, group = _attributes(claim, manifest)
    documents = arrays.metadata(schemas_of(claim), each, group)
    manifest["zarr"] = {key: hashlib.sha256(body).hexdigest() for key, body in documents.items()}
    manifest["environment"] = totals.environments()
    if claim["spec"]["statistics"] and totals.lengths:
        last = list(totals.last.values())
        layers = claim["hook"]["layers"]
        merged = stored_statistics.merge_partitions(store, last, layers, totals.lengths)
        objects = stored_statistics.zarr_objects(merged, group)
        manifest["statistics"] = stored_statistics.manifest_entry(merged, objects)
        documents |= objects
    return manifest, documents


def text_name(text: dict[str, Any]) -> str:
    """What a claim's text is called: the data set, the sample, or its files, the first three by name."""
    if text["source"] == "sample":
        return "the packaged sample"
    names = [file["name"] for file in text.get("files", [])]
    more = f" and {len(names) - 3} more files" if len(names) > 3 else ""
    return str(text.get("name") or ", ".join(names[:3]) + more)


def schemas_of(claim: dict[str, Any]) -> dict[str, ArraySchema]:
    """The array schemas that a claim or manifest describes."""
    rows = claim["spec"]["sequences"]
    return {
        name: ArraySchema(
            name,
            tuple(entry["shape"]),
            entry["dtype"],
            tuple(entry["chunks"]),
            tuple(entry["dimensions"]),
            rows,
            "lz4" if "blosc" in entry["codecs"] else "none",
        )
        for name, entry in claim["arrays"].items()
    }


def _create_same(store: Store, key: str, body: bytes) -> None:
    try:
        store.create(key, body)
    except FileExistsError:
        if store.get(key) != body:
            raise ConflictError(
                f"{store.url}/{key} is already there and says something else: delete the run"
            ) from None


def _object_check(store: Store, claim: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """A check that every chunk that a record names is there as it was recorded, by one listing.

    The store's own tag tells an object that was put over after it was recorded; such a one is read
    and must have the recorded digest.
    """
    there = {item.key: item for item in store.objects(GROUP)}
    schemas = schemas_of(claim)

    def check(record: dict[str, Any]) -> None:
        for name, entry in record["arrays"].items():
            for part in entry["chunks"]:
                key, item = part["key"], there.get(part["key"])
                if item is None or item.size != part["size"]:
                    found = "is missing" if item is None else f"has {item.size} bytes"
                    raise CheckError(
                        f"{store.url}/{key} {found}, recorded with {part['size']}: "
                        f"delete the run and make it anew"
                    )
                if item.tag != record["tags"][key] and (
                    chunks.stored_digest(schemas[name], store.get(key)) != part["digest"]
                ):
                    raise CheckError(
                        f"{store.url}/{key} was put over with other values after it was recorded: "
                        "two unlike machines worked on one partition; delete the run"
                    )

    return check


def _manifest(claim: dict[str, Any], totals: Totals) -> dict[str, Any]:
    """The manifest's content from claim and records."""
    spec, entries = claim["spec"], totals.arrays()
    return {
        "fingerprint": claim["fingerprint"],
        "spec": spec,
        "partitions": spec["partitions"],
        "batches": spec["batches"],
        "model": claim["model"],
        "hook": claim["hook"],
        "tokenizer": claim["tokenizer"],
        "text": {**claim["text"], **totals.documents()},
        "tokens": {
            "count": entries[TOKEN_IDS]["shape"][0] * spec["positions"],
            "sequences": entries[TOKEN_IDS]["shape"][0],
            "positions": spec["positions"],
            "special": totals.special_tokens,
            "digest": entries[TOKEN_IDS]["digest"],
            "length": lengths.summarize(totals.lengths),
        },
        "arrays": entries,
        "claim": claim["content_digest"],
        "records": totals.records,
        "checks": _checks(claim, totals, entries),
    }


def _checks(
    claim: dict[str, Any], totals: Totals, entries: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """What must hold before anything is committed, each with the values seen."""
    spec = claim["spec"]
    layers = {name: entry for name, entry in entries.items() if name.startswith(LAYER)}
    rows = spec["sequences"] * spec["batches"] * spec["partitions"]
    shape = [rows, spec["positions"], claim["model"]["neurons"]]
    shapes = [entry["shape"] for entry in layers.values()]
    counted = sum(totals.lengths.values()) + totals.special_tokens
    nonfinite = sum(entry["nonfinite"] for entry in entries.values())
    checks: dict[str, dict[str, Any]] = {
        "tokens": {"expected": rows * spec["positions"], "found": counted},
        "nonfinite": {"expected": 0, "found": nonfinite},
    }
    if spec["arrays"]:
        read_back = len(layers) * len(totals.records)
        checks |= {
            "layers": {"expected": len(claim["hook"]["layers"]), "found": len(layers)},
            "shape": {"expected": shape, "found": shapes[0] if shapes else []},
            "values": {"expected": math.prod(shape), "found": totals.least_values()},
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
