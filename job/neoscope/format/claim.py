"""Taking a destination: a run or a copy claims an empty one or its own, and nothing else.

In: a store and what is put there first of all. Out: what holds the destination, or a ConflictError before a
byte is written. What systems leave in folders of theirs does not count. It does not know what is put
there afterwards.
"""

from __future__ import annotations

import json
import re
from typing import Any

from neoscope.errors import ConflictError, InputError, UnavailableError
from neoscope.format import sealed_json
from neoscope.format.layout import CLAIM
from neoscope.format.records import read_claim
from neoscope.spec import RunSpec, differing_fields
from neoscope.storage.store import Store

# Names of files and folders that nobody put there on purpose.
SYSTEM = re.compile(
    r"\.DS_Store|\._.*|\.Spotlight-V100|\.Trashes|\.fseventsd"  # macOS
    r"|Thumbs\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information"  # Windows
    r"|lost\+found|\.Trash-\d+|\.nfs[0-9a-f]+|\.fuse_hidden[0-9a-f]+"  # Linux
    r"|@eaDir",  # Synology
    re.IGNORECASE,
)


def left_by_system(key: str) -> bool:
    """Whether an object is one that a system leaves beside what people store, by its name."""
    return any(SYSTEM.fullmatch(part) for part in key.split("/"))


def check_destination(store: Store, key: str) -> None:
    """Raise ConflictError where a destination lies in a run, or holds something and not `key`, which says
    whose it is."""
    if _is_empty(store, key):
        for parent in store.parents():
            if _holds_run(parent):
                raise ConflictError(
                    f"{store.url} lies in the run at {parent.url}: give a destination outside of it"
                )


def take_destination(store: Store, key: str, body: bytes) -> bytes:
    """Put `body` under `key` first of all at a destination; what is there now, which another worker may have
    put at this moment. Raises ConflictError where it holds anything else."""
    if _is_empty(store, key):
        try:
            store.create(key, body)
            return body
        except FileExistsError:
            pass
    there = store.get(key)
    if there is None:
        raise UnavailableError(f"{store.url}/{key} vanished while it was read")
    return there


def claim_destination(store: Store, key: str, body: bytes) -> None:
    """Put JSON that says what a destination is for under `key`, first of all there. What is there already
    must be the same, so that a later start finishes it: ConflictError where it is anything else."""
    check_destination(store, key)
    there = take_destination(store, key, body)
    if there == body:
        return
    try:
        found = "; ".join(differing_fields(json.loads(body), json.loads(there)))[:500]
    except ValueError:
        found = f"{key} is damaged"
    raise ConflictError(
        f"{store.url} holds something else already: {found}; give an empty destination"
    )


def put_claim(store: Store, spec: RunSpec, resolved: dict[str, Any]) -> dict[str, Any]:
    """Claim the destination for a spec, or adopt the claim that another worker of the same spec put first.

    The claim is put a second time, which the store must refuse: the commit depends on that.
    """
    body = sealed_json.dump(
        "run", {"fingerprint": spec.fingerprint, "spec": spec.to_json(), **resolved}
    )
    if take_destination(store, CLAIM, body) != body:
        claim = read_claim(store, spec)
        if claim is None:
            raise UnavailableError(f"{store.url}/{CLAIM} vanished while it was read")
        return claim
    try:
        # Not the same bytes: as those, a put that was answered and not kept would seem to be put over them.
        store.create(CLAIM, body + b"\n")
    except FileExistsError:
        return sealed_json.load("run", body, CLAIM)
    store.delete([CLAIM])
    raise ConflictError(
        f"the storage of {store.url} puts over an object in spite of `If-None-Match: *`: neoscope "
        "needs conditional puts to keep two workers apart; give storage that honours them"
    )


def _is_empty(store: Store, key: str) -> bool:
    """Whether nothing is at a destination; False where it is taken with `key`, else ConflictError."""
    half_put = re.compile(re.escape(key) + r"#\d+")  # by a worker that was killed
    other = store.first(lambda each: not (left_by_system(each) or half_put.fullmatch(each)))
    if other is None:
        return True
    if store.get(key) is None:
        raise ConflictError(
            f"{store.url} holds other objects, {other} among them: give an empty destination"
        )
    return False


def _holds_run(parent: Store) -> bool:
    try:
        return b'"kind": "neoscope.run"' in (parent.get(CLAIM) or b"")
    except (
        InputError
    ):  # keys often reach their own prefix only, and some systems hide other folders
        return False
