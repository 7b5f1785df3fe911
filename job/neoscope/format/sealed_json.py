"""JSON documents that show any change of their bytes, and of what they say.

In: plain values. Out: bytes with two digests inside. `seal` is the SHA-256 of the document's own exact
bytes with the 64 digits zeroed: a flipped bit anywhere shows, white space included. `content_digest`
leaves out `seal` itself, `environment`, `timings`, store tags and the `resume_state` of a record, which
`datasets` words differently after a restart: equal where two runs say the same.
It does not know what the documents mean beyond their JSON Schemas.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from importlib import resources
from typing import Any

from neoscope.errors import CheckError
from neoscope.spec import canonical_json

# What differs between two runs of one spec, or between two machines, without being content.
NOT_CONTENT = {"seal", "content_digest", "environment", "resume_state", "tags", "timings"}
SEAL = re.compile(rb'^  "seal": "([0-9a-f]{64})"', re.MULTILINE)
ZEROS = b"0" * 64
VERSION = 1  # of the contract, frozen


def content_digest(document: dict[str, Any]) -> str:
    """SHA-256 of what a document says, 64 hexadecimal digits."""
    content = {key: value for key, value in document.items() if key not in NOT_CONTENT}
    return hashlib.sha256(canonical_json(content)).hexdigest()


def dump(kind: str, document: dict[str, Any]) -> bytes:
    """The bytes of a document, sealed and valid by the schema of its kind."""
    document = {
        "kind": f"neoscope.{kind}",
        "version": VERSION,
        "seal": ZEROS.decode(),
        "content_digest": "",
        **document,
    }
    document["content_digest"] = content_digest(document)
    _validator(kind).validate(document)
    body = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    return SEAL.sub(
        b'  "seal": "' + hashlib.sha256(body).hexdigest().encode() + b'"', body, count=1
    )


def load(kind: str, body: bytes, where: str) -> dict[str, Any]:
    """The document in `body`. Raises CheckError where seal, schema or digest do not hold."""
    if not intact(body):
        raise CheckError(f"{where} is damaged: checksum mismatch; delete the run and run it again")
    document: dict[str, Any] = json.loads(body)
    problem = next(_validator(kind).iter_errors(document), None)
    if problem is not None:
        raise CheckError(
            f"{where} is no {kind} that this version of neoscope knows: {problem.message}"
        )
    if document["content_digest"] != content_digest(document):
        raise CheckError(
            f"{where} is damaged: its content digest does not match; delete the run and run it again"
        )
    return document


def intact(body: bytes | memoryview) -> bool:
    """Whether a document's seal fits its bytes."""
    body = bytes(body)
    found = SEAL.search(body)
    zeroed = body[: found.start(1)] + ZEROS + body[found.end(1) :] if found else body
    return found is not None and hashlib.sha256(zeroed).hexdigest().encode() == found[1]


@cache
def schema(kind: str) -> dict[str, Any]:
    """The published JSON Schema of a kind: `run`, `record`, `rollup` or `manifest`."""
    path = resources.files("neoscope.format") / "schemas" / f"{kind}.schema.json"
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@cache
def _validator(kind: str) -> Any:
    import jsonschema_rs  # a record of 64 batches takes another one 0.1 s

    return jsonschema_rs.Draft202012Validator(schema(kind))
