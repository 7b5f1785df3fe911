"""What the manifest and the summary say of a run, held against what is stored."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import xxhash
import zarr

from neoscope.format import sealed_json
from support.making import BATCHES, LAYERS, POSITIONS, SIZE, Run, group, sample, values
from support.places import body, listing


def test_claim_records_roll_up_and_manifest_hold_to_the_published_schemas(run: Run) -> None:
    for key in listing(run.url):
        kind = {"run.json": "run", "manifest.json": "manifest"}.get(key, "")
        kind = {"records": "record", "rollups": "rollup"}.get(key.partition("/")[0], kind)
        if kind:
            jsonschema.Draft202012Validator(sealed_json.schema(kind)).validate(
                json.loads(body(run.url, key))
            )


def test_the_manifests_arrays_are_those_in_the_store(run: Run) -> None:
    entries, there = run.manifest["arrays"], listing(run.url)
    assert list(entries) == [*LAYERS, "token_ids", "token_length"]
    for name, entry in entries.items():
        array = group(run.url)[name]
        assert isinstance(array, zarr.Array)
        assert (tuple(entry["shape"]), tuple(entry["chunks"])) == (array.shape, array.chunks)
        assert entry["dtype"] == array.dtype.name
        stored = [
            size
            for key, (size, *_) in there.items()
            if key.startswith(f"activations.zarr/{name}/c/")
        ]
        assert entry["stored_bytes"] == sum(stored)
        exact = values(run.url, name)
        wide = exact.astype(np.float64)
        assert (entry["min"], entry["max"]) == (wide.min(), wide.max())
        assert entry["mean"] == pytest.approx(wide.mean(), rel=1e-6, abs=1e-6 * wide.std())
        assert entry["std"] == pytest.approx(wide.std(), rel=1e-6)
        assert entry["nonfinite"] == 0
        rows = array.chunks[0]
        parts = [
            xxhash.xxh3_128_digest(np.ascontiguousarray(exact[first : first + rows]).tobytes())
            for first in range(0, len(exact), rows)
        ]
        partition = xxhash.xxh3_128_digest(b"".join(parts))
        assert entry["digest"] == xxhash.xxh3_128_hexdigest(partition)


def test_the_manifests_token_lengths_are_those_in_the_store(run: Run) -> None:
    tokens = run.manifest["tokens"]
    lengths = values(run.url, "token_length").ravel().tolist()
    median = statistics.median_low(lengths)
    assert (tokens["count"], tokens["sequences"], tokens["positions"]) == (384, 16, 24)
    assert tokens["special"] == 0
    assert tokens["digest"] == run.manifest["arrays"]["token_ids"]["digest"]
    found = tokens["length"]
    assert (found["min"], found["median"], found["max"]) == (min(lengths), median, max(lengths))
    assert found["mean"] == pytest.approx(statistics.fmean(lengths))
    assert found["histogram"] == {str(n): lengths.count(n) for n in sorted(set(lengths))}
    for name, count in {
        "shorter": sum(n < median for n in lengths),
        "equal": sum(n == median for n in lengths),
        "longer": sum(n > median for n in lengths),
    }.items():
        assert found["groups"][name] == {"count": count, "share": pytest.approx(count / 384)}


def test_the_manifest_says_which_documents_were_used_and_where_the_last_was_cut(
    run: Run, tokenizer: Any
) -> None:
    text, left, expected = run.manifest["text"], SIZE * BATCHES, []
    for document in sample():
        if left:
            count = len(tokenizer(document["text"], add_special_tokens=False)["input_ids"])
            used = min(count, left)
            left -= used
            expected.append({"id": document["id"], "tokens": count, "used": used, "partition": 0})
    assert text["documents"] == expected
    assert text["document_count"] == len(expected)
    assert text["cut"] == [expected[-1]]
    assert text["source"] == "sample"


def test_the_manifest_says_what_it_was_made_of(run: Run, small_model: Path) -> None:
    manifest = run.manifest
    assert manifest["model"]["name"] == str(small_model)
    assert (manifest["model"]["layers"], manifest["model"]["neurons"]) == (3, 64)
    assert manifest["model"]["weights"] == "pretrained"
    assert manifest["model"]["revision"] is None
    assert manifest["spec"]["positions"] == POSITIONS
    assert manifest["tokenizer"]["size"] == 512
    rollup = json.loads(body(run.url, "rollups/00000.json"))
    assert manifest["rollups"] == {"rollups/00000.json": rollup["content_digest"]}
    records = sorted(key for key in listing(run.url) if key.startswith("records/"))
    assert rollup["records"] == [
        json.loads(body(run.url, key))["content_digest"] for key in records
    ]
    groups = [manifest[name]["objects"].keys() for name in ("statistics", "neurons")]
    assert {*manifest["zarr"]}.union(*groups) == {
        key
        for key in listing(run.url)
        if key.endswith("zarr.json") or key.startswith(("statistics.zarr", "neurons.zarr"))
    }
    assert {"prepare", "capture", "store", "commit"} <= manifest["timings"].keys()


def test_every_check_is_recorded_with_what_was_seen(run: Run) -> None:
    checks = run.manifest["checks"]
    assert all(check["passed"] and check["found"] == check["expected"] for check in checks.values())
    assert checks["layers"]["found"] == 3
    assert checks["shape"]["found"] == [16, 24, 64]
    assert checks["values"]["found"] == 16 * 24 * 64
    assert checks["nonfinite"]["found"] == 0
    assert checks["read_back"]["found"] == 3 * BATCHES


def test_the_summary_is_the_table_of_the_exercise_and_the_way_in(run: Run) -> None:
    length = run.manifest["tokens"]["length"]
    for name, sign in (("shorter", "<"), ("equal", "="), ("longer", ">")):
        found = length["groups"][name]
        row = rf"{name}\s+{sign} {length['median']}\s+{found['count']}\s+{found['share']:.1%}"
        assert re.search(row, run.done.out), row
    assert "MLP_0 ... MLP_2  each [16 x 24 x 64] float32" in run.done.out
    assert run.url in run.done.out
    assert all(line.startswith("neoscope: ") for line in run.done.err.splitlines())


def test_the_lines_at_the_end_of_the_summary_open_the_run(run: Run) -> None:
    lines = run.done.out.partition("Open it in Python:\n")[2]
    code = "\n".join(line.strip() for line in lines.splitlines()) + "\nprint(dict(run.sizes))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "{'sequence': 16, 'position': 24, 'neuron': 64}\n", done.stderr
