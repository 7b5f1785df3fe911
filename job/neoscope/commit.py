"""The commit: from claim and records to the Zarr metadata and the manifest.

In: a run whose partitions are all recorded to the end. Out: `zarr.json` files and last
`manifest.json`, a pure function of claim and records but for timings and environment, so that
workers who race to commit write the same. It does not know how the values were computed.
"""

from __future__ import annotations

import hashlib
import math
import time
from typing import Any

from neoscope import arrays, chunks, lengths, sealed
from neoscope.arrays import GROUP, LAYER, TOKEN_IDS, TOKEN_LENGTH, ArraySchema
from neoscope.errors import CheckError, ConflictError
from neoscope.records import array_summary, read_records, record_key
from neoscope.storage import Store

MANIFEST = "manifest.json"
LISTED_DOCUMENTS = 1000


def read_manifest(store: Store) -> dict[str, Any] | None:
    """The manifest of the run at a place, None where it is not committed."""
    body = store.get(MANIFEST)
    return None if body is None else sealed.load("manifest", body, f"{store.url}/{MANIFEST}")


def commit(
    store: Store,
    claim: dict[str, Any],
    *,
    environment: dict[str, Any],
    timings: dict[str, float],
) -> dict[str, Any] | None:
    """Commit the run and return its manifest; None while a partition is not recorded to the end.

    Raises CheckError where an object is missing or of another size than recorded, ConflictError
    where a manifest that says something else is already there.
    """
    began = time.perf_counter()
    spec = claim["spec"]
    by_partition = read_records(store, claim)
    for partition in range(spec["partitions"]):
        found = by_partition.get(partition, [])
        if not found or found[-1]["batches"] != spec["batches"]:
            return None
        expected = [record_key(partition, count) for count in range(1, spec["batches"] + 1)]
        if [record_key(partition, record["batches"]) for record in found] != expected:
            raise CheckError(f"{store.url}/records lacks records of partition {partition}")
    records = [record for partition in sorted(by_partition) for record in by_partition[partition]]
    _check_objects(store, records)
    manifest = _manifest(claim, records)
    schemas = schemas_of(claim)
    documents = arrays.metadata(schemas, *_attributes(claim, manifest))
    manifest["zarr"] = {key: hashlib.sha256(body).hexdigest() for key, body in documents.items()}
    manifest["environment"] = environment
    spent = {**_sum_timings(records), **timings}
    manifest["timings"] = {**spent, "commit": time.perf_counter() - began}
    body = sealed.dump("manifest", manifest)
    for key, document in documents.items():
        _create_same(store, key, document)
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
    return sealed.load("manifest", body, MANIFEST)


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


def _check_objects(store: Store, records: list[dict[str, Any]]) -> None:
    """Every recorded chunk must be there at its recorded size, by one listing."""
    there = {item.key: item.size for item in store.objects(GROUP)}
    for record in records:
        for entry in record["arrays"].values():
            for part in entry["chunks"]:
                if there.get(part["key"]) != part["size"]:
                    found = there.get(part["key"])
                    raise CheckError(
                        f"{store.url}/{part['key']} "
                        + ("is missing" if found is None else f"has {found} bytes")
                        + f", recorded with {part['size']}: delete the run and make it anew"
                    )


def _manifest(claim: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, Any]:
    """The manifest's content from claim and records, in order of partitions and batches."""
    spec = claim["spec"]
    counts = lengths.merge(
        [
            {int(length): count for length, count in record["length_histogram"].items()}
            for record in records
        ]
    )
    entries = {}
    for name, schema in claim["arrays"].items():
        parts = [part for record in records for part in record["arrays"][name]["chunks"]]
        summary = array_summary(records, name)
        entries[name] = {
            **schema,
            "stored_bytes": sum(part["size"] for part in parts),
            "digest": chunks.combine([part["digest"] for part in parts]),
            "min": summary.min,
            "max": summary.max,
            "mean": summary.mean,
            "std": summary.std,
            "nonfinite": summary.nonfinite,
        }
    return {
        "fingerprint": claim["fingerprint"],
        "spec": spec,
        "partitions": spec["partitions"],
        "batches": spec["batches"],
        "model": claim["model"],
        "tokenizer": claim["tokenizer"],
        "text": {**claim["text"], **_documents(records)},
        "tokens": {
            "count": entries[TOKEN_IDS]["shape"][0] * spec["positions"],
            "sequences": entries[TOKEN_IDS]["shape"][0],
            "positions": spec["positions"],
            "special": sum(record["special_tokens"] for record in records),
            "digest": entries[TOKEN_IDS]["digest"],
            "length": lengths.summarize(counts),
        },
        "arrays": entries,
        "claim": claim["content_digest"],
        "records": {
            record_key(record["partition"], record["batches"]): record["content_digest"]
            for record in records
        },
        "checks": _checks(claim, records, entries, sum(counts.values())),
    }


def _checks(
    claim: dict[str, Any], records: list[dict[str, Any]], entries: dict[str, Any], counted: int
) -> dict[str, Any]:
    """What must hold before anything is committed, each with the values seen."""
    spec, model = claim["spec"], claim["model"]
    layers = {name: entry for name, entry in entries.items() if name.startswith(LAYER)}
    rows = spec["sequences"] * spec["batches"] * spec["partitions"]
    shape = [rows, spec["positions"], model["neurons"]]
    shapes = [entry["shape"] for entry in layers.values()]
    counts = {name: array_summary(records, name).count for name in layers}
    nonfinite = sum(entry["nonfinite"] for entry in entries.values())
    read_back = sum(len(record["read_back"]) for record in records)
    special = sum(record["special_tokens"] for record in records)
    checks: dict[str, dict[str, Any]] = {
        "layers": {"expected": model["layers"], "found": len(layers)},
        "shape": {"expected": shape, "found": shapes[0] if shapes else []},
        "values": {"expected": math.prod(shape), "found": min(counts.values(), default=0)},
        "nonfinite": {"expected": 0, "found": nonfinite},
        "read_back": {"expected": len(layers) * len(records), "found": read_back},
        "tokens": {"expected": rows * spec["positions"], "found": counted + special},
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


def _documents(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The documents used, each once although batches cut it, and where each partition's last was cut."""
    documents: list[dict[str, Any]] = []
    last: dict[int, dict[str, Any]] = {}
    for record in records:
        partition = record["partition"]
        for span in record["documents"]:
            if span["start"] and partition in last:
                last[partition]["used"] = span["stop"]
                continue
            last[partition] = {
                "id": span["id"],
                "tokens": span["tokens"],
                "used": span["stop"],
                "partition": partition,
            }
            documents.append(last[partition])
    return {
        "document_count": len(documents),
        "documents": documents[:LISTED_DOCUMENTS],
        "cut": [entry for entry in last.values() if entry["used"] < entry["tokens"]],
    }


def _attributes(
    claim: dict[str, Any], manifest: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """What each array and the group say of themselves, in words, to a reader without neoscope."""
    model, text = claim["model"], claim["text"]
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
            "description": "Characters of the token's own string, the leading space counted; "
            "0 for special tokens.",
            "units": "characters",
            "median": manifest["tokens"]["length"]["median"],
        },
    }
    for name in manifest["arrays"]:
        if name.startswith(LAYER):
            layer = int(name.removeprefix(LAYER))
            each[name] = {
                "description": f"What the {model['neurons']} MLP neurons of layer {layer} are given: "
                "the output of the MLP's first linear map, before GELU.",
                "hook_point": f"transformer.h.{layer}.mlp.c_fc",
                "hook_side": "output",
                "layer": layer,
                **common,
            }
    group = {
        "title": f"MLP neurons of {model['name']} on {text.get('name') or text['source']}",
        "description": "Activations before GELU of every MLP neuron of every layer at every token; "
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


def _sum_timings(records: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of each step over all batches."""
    total: dict[str, float] = {}
    for record in records:
        for step, seconds in record["timings"].items():
            total[step] = total.get(step, 0.0) + seconds
    return total
