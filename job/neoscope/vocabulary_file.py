"""`vocabulary.json`: the string of every token id, so that no reader needs the tokenizer.

In: strings and special ids. Out: bytes, and the way back, held against the digest in the claim. It does not
know the tokenizer.
"""

from __future__ import annotations

import json

from neoscope import sealed
from neoscope.tokenizer import LoadedTokenizer


def vocabulary_content(tokenizer: LoadedTokenizer) -> bytes:
    """The bytes of vocabulary.json: the string of every token id, index = id, and the special ids."""
    document = {
        "kind": "neoscope.vocabulary",
        "version": sealed.VERSION,
        "special": tokenizer.special,
        "tokens": tokenizer.strings,
    }
    return json.dumps(document, ensure_ascii=False, indent=0).encode() + b"\n"
