"""Token ids of a text, for `capture`, as a run has them.

In: a tokenizer's name, and text. Out: transformers' own tokenizer, and token ids [sequence, position]. It
does not know what is run on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from neoscope import spec
from neoscope.argument_checks import check_number
from neoscope.errors import InputError
from neoscope.spec import GPT_NEO_125M, Weights
from neoscope.text import tokenizer


def load_tokenizer(
    name: str = GPT_NEO_125M, *, revision: str | None = None, weights: Weights = "pretrained"
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, by the same arguments as `load_model`, as transformers has it.

    `name` is a name on the Hub or a local folder. With `weights="random"` the three published GPT-Neo
    have the vocabulary that comes with neoscope, which is theirs (GPT-2's), and need no Hub. Raises
    InputError for what there is not and for what cannot be loaded, UnavailableError without a Hub.
    """
    name = spec.check_source(name, revision, weights)
    return tokenizer.load_tokenizer(None, revision=revision, model=name, weights=weights).tokenizer


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    text: str | Iterable[str],
    *,
    sequences: int = 1,
    positions: int | None = None,
) -> npt.NDArray[np.int32]:
    """Token ids of a text: int32 [sequence, position], as a run packs them.

    `text` is one document or several, which are joined with nothing between them; no special token is
    added. The result is the first `sequences x positions` tokens, or where `positions` is None every
    token of the text in one sequence. Raises InputError where the text has fewer.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            f"a tokenizer of transformers is needed, not a {type(tokenizer).__qualname__}: "
            "see neoscope.load_tokenizer"
        )
    size = _size(sequences, positions)
    ids: list[int] = []
    for document in _documents(text):
        ids += tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        if size is not None and len(ids) >= size:
            break
    if len(ids) < (size or 1):
        raise InputError(
            f"the text has {len(ids):,} tokens, and {size or 1:,} are needed: give more text"
        )
    return np.array(ids[:size], np.int32).reshape(sequences, -1)


def _size(sequences: Any, positions: Any) -> int | None:
    """The number of tokens that are wanted, None for all."""
    rows = check_number("sequences", sequences, 1)
    if positions is not None:
        return rows * check_number("positions", positions, 1)
    if rows > 1:
        raise InputError(f"sequences={rows}: give positions too, the number of tokens of each")
    return None


def _documents(text: Any) -> Iterator[str]:
    documents = [text] if isinstance(text, str) else text
    if not isinstance(documents, Iterable):
        raise InputError(f"text={text!r}: give a string, or several of them")
    for number, document in enumerate(documents):
        if not isinstance(document, str):
            kind = type(document).__name__
            raise InputError(f"document {number} of the text is a {kind}: give strings")
        yield document
