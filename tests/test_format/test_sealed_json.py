"""Sealed JSON: any change of a document's bytes shows, and its content digest is what it says."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from typing import Any

import jsonschema
import jsonschema_rs
import pytest

from neoscope.errors import CheckError
from neoscope.format import sealed_json

DIGEST = "0123456789abcdef" * 2


@pytest.fixture
def record() -> dict[str, Any]:
    """A small record, valid by its schema."""
    summary = {"count": 4, "min": -1.5, "max": 2, "total": 0.5, "squares": 3.25, "nonfinite": 0}
    key = "activations.zarr/MLP_0/c/0/0/0"
    return {
        "fingerprint": "f" * 64,
        "partition": 0,
        "batches": 1,
        "arrays": {
            "MLP_0": {"chunks": [{"key": key, "size": 20, "digest": DIGEST}], "summary": summary}
        },
        "documents": [{"id": "naïve", "tokens": 9, "start": 0, "stop": 4}],
        "resume_state": {"stream": {"index": 0}, "offset": 4},
        "length_histogram": {"1": 3, "12": 1},
        "special_tokens": 0,
        "read_back": {"MLP_0": key},
        "tags": {key: None},
        "environment": {
            "python": "3",
            "platform": "x",
            "device": "cpu",
            "precision": {},
            "libraries": {},
        },
        "timings": {"capture": 0.25},
    }


def load(body: bytes) -> dict[str, Any]:
    return sealed_json.load("record", body, "records/x.json")


def reseal(body: bytes) -> bytes:
    """Give changed bytes a seal that fits, as a careful forger would."""
    zeroed = re.sub(rb'"seal": "[^"]*"', b'"seal": "' + b"0" * 64 + b'"', body, count=1)
    seal = hashlib.sha256(zeroed).hexdigest().encode()
    return zeroed.replace(b'"seal": "' + b"0" * 64, b'"seal": "' + seal, 1)


def test_a_document_reads_back_as_it_was_written(record: dict[str, Any]) -> None:
    document = load(sealed_json.dump("record", record))
    assert {name: document[name] for name in record} == record
    assert document["kind"] == "neoscope.record"


def test_the_seal_is_the_digest_of_the_bytes_with_its_digits_zeroed(
    record: dict[str, Any],
) -> None:
    body = sealed_json.dump("record", record)
    seal = json.loads(body)["seal"].encode()
    assert body.count(seal) == 1
    assert hashlib.sha256(body.replace(seal, b"0" * 64)).hexdigest().encode() == seal


def test_any_single_flipped_bit_is_found(record: dict[str, Any]) -> None:
    body = sealed_json.dump("record", record)
    for place in range(len(body)):
        for bit in range(8):
            damaged = bytearray(body)
            damaged[place] ^= 1 << bit
            with pytest.raises(CheckError, match="records/x.json is damaged"):
                load(bytes(damaged))


@pytest.mark.parametrize(
    "damage",
    [
        lambda body: b"",
        lambda body: body[:-1],
        lambda body: body + b"\n",
        lambda body: body[: len(body) // 2],
        lambda body: b" " + body,
        lambda body: body.replace(b"\n", b"\r\n"),
        lambda body: b"null",
        lambda body: b"\xff\xfe",
        lambda body: body.replace(b"0.25", b"0.26"),
    ],
)
def test_a_cut_padded_or_edited_document_is_found(record: dict[str, Any], damage: Any) -> None:
    with pytest.raises(CheckError, match="damaged"):
        load(damage(sealed_json.dump("record", record)))


def test_a_text_that_looks_like_a_seal_does_not_confuse_it(record: dict[str, Any]) -> None:
    record["documents"][0]["id"] = '\n  "seal": "' + "0" * 64 + '"'
    assert load(sealed_json.dump("record", record))["documents"] == record["documents"]


def test_the_content_digest_leaves_out_what_differs_between_two_runs(
    record: dict[str, Any],
) -> None:
    before = load(sealed_json.dump("record", record))
    record["timings"] = {"capture": 9.0, "store": 1.0}
    record["environment"]["device"] = "another"
    record["resume_state"]["stream"] = {"the same place": "in other words"}
    record["tags"] = {"activations.zarr/MLP_0/c/0/0/0": "etag"}
    after = load(sealed_json.dump("record", record))
    assert after["content_digest"] == before["content_digest"]
    assert after["seal"] != before["seal"]


def test_the_content_digest_covers_everything_else(record: dict[str, Any]) -> None:
    before = load(sealed_json.dump("record", record))["content_digest"]
    changes: dict[str, Any] = {
        "fingerprint": "e" * 64,
        "partition": 1,
        "batches": 2,
        "arrays": {},
        "documents": [],
        "length_histogram": {"1": 4},
        "special_tokens": 1,
        "read_back": {},
    }
    assert changes.keys() == record.keys() - {"tags", "environment", "timings", "resume_state"}
    for name, value in changes.items():
        changed = load(sealed_json.dump("record", {**record, name: value}))
        assert changed["content_digest"] != before, name


def test_the_content_digest_is_that_of_the_published_form(record: dict[str, Any]) -> None:
    document = load(sealed_json.dump("record", record))
    left_out = {"seal", "content_digest", "environment", "resume_state", "tags", "timings"}
    content = {name: value for name, value in document.items() if name not in left_out}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert document["content_digest"] == hashlib.sha256(text.encode()).hexdigest()


def test_a_forged_content_with_a_seal_that_fits_is_found(record: dict[str, Any]) -> None:
    body = sealed_json.dump("record", record).replace(
        b'"special_tokens": 0', b'"special_tokens": 1'
    )
    with pytest.raises(CheckError, match="content digest does not match"):
        load(reseal(body))


def broken(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Records that the schema must refuse."""
    found = []
    for name in record:
        without = copy.deepcopy(record)
        del without[name]
        found.append(without)
    for path, value in [
        (["unknown"], 1),
        (["fingerprint"], "F" * 64),
        (["partition"], -1),
        (["batches"], 0),
        (["batches"], "1"),
        (["arrays", "MLP_0", "chunks"], []),
        (["arrays", "MLP_0", "summary", "nonfinite"], 1),
        (["arrays", "MLP_0", "summary", "count"], 0),
        (["documents", 0, "stop"], None),
        (["resume_state", "offset"], -1),
        (["length_histogram", "0"], 1),
        (["length_histogram", "1"], 0),
        (["timings", "capture"], -1),
    ]:
        changed = copy.deepcopy(record)
        target: Any = changed
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = value
        found.append(changed)
    return found


def test_nothing_that_breaks_the_schema_is_written(record: dict[str, Any]) -> None:
    for document in broken(record):
        with pytest.raises(jsonschema_rs.ValidationError):
            sealed_json.dump("record", document)


def test_nothing_that_breaks_the_schema_is_read(record: dict[str, Any]) -> None:
    body = sealed_json.dump("record", record)
    for old, new in [
        (b'"batches": 1', b'"batches": 0'),
        (b'"partition": 0,', b'"partition": 0, "unknown": 1,'),
        (b'"version": ', b'"version": 9'),
        (b"neoscope.record", b"neoscope.run"),
    ]:
        assert body.count(old) == 1
        with pytest.raises(CheckError, match="no record that this version of neoscope knows"):
            load(reseal(body.replace(old, new)))


def test_a_value_that_json_does_not_have_is_never_written(record: dict[str, Any]) -> None:
    for part, name in ((record["arrays"]["MLP_0"]["summary"], "total"), (record["timings"], "x")):
        part[name] = float("nan")
        with pytest.raises((ValueError, jsonschema_rs.ValidationError)):
            sealed_json.dump("record", record)
        part[name] = 0.0


@pytest.mark.parametrize("kind", ["run", "record", "manifest"])
def test_the_published_schemas_are_valid_and_say_what_every_object_may_hold(kind: str) -> None:
    schema = sealed_json.schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["kind"] == {"const": f"neoscope.{kind}"}
    assert {"seal", "content_digest", "fingerprint", "version"} <= set(schema["required"])
