"""The string of every token of a selection, beside its token ids, so that any reader of Zarr has them.

In: a destination that holds the token ids, and the vocabulary's strings. Out: the chunks of `token_text` in
Zarr's `string` (codecs vlen-utf8 and crc32c). It does not know what else is selected.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import google_crc32c
import numpy as np

from neoscope.errors import CheckError
from neoscope.format import chunks
from neoscope.format.arrays import ArraySchema
from neoscope.format.layout import TOKEN_TEXT
from neoscope.storage.store import Store


def put_token_text(dest: Store, ids: ArraySchema, tokens: list[str]) -> ArraySchema:
    """Store the strings of the token ids [sequence, position] that lie in `dest`, in the same chunks."""
    schema = dataclasses.replace(ids, name=TOKEN_TEXT, dtype="string")
    strings = np.array([*tokens, ""], dtype=object)  # -1, beyond the array, has no string
    counts = (-(-size // chunk) for size, chunk in zip(ids.shape, ids.chunks, strict=True))
    for index in np.ndindex(*counts):
        body = dest.read(ids.key(index))
        if chunks.stored_digest(ids, body) is None or body is None:
            raise CheckError(f"{dest.url}/{ids.key(index)} is not as it was put: pull it again")
        text = _encoded(strings[chunks.decode(ids, body)])
        if dest.get(schema.key(index)) != text:
            dest.put(schema.key(index), text)
    return schema


def _encoded(text: Any) -> bytes:
    from numcodecs.vlen import VLenUTF8

    body = bytes(VLenUTF8().encode(text.reshape(-1)))
    return body + int(google_crc32c.value(body)).to_bytes(4, "little")
