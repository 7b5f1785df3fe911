"""`vocabulary.json`: the string of every token id, so that no reader needs the tokenizer.

In: strings and special ids. Out: bytes, and the way back, held against the digest in the claim. It does not
know the tokenizer.
"""

from __future__ import annotations

import json

from neoscope.format import sealed_json


def vocabulary_content(strings: list[str], special: list[int]) -> bytes:
    """The bytes of vocabulary.json: the string of every token id, index = id, and the special ids."""
    document = {
        "kind": "neoscope.vocabulary",
        "version": sealed_json.VERSION,
        "special": special,
        "tokens": strings,
    }
    return json.dumps(document, ensure_ascii=False, indent=0).encode() + b"\n"
