"""The tokenizer of a run, from the Hub, a local folder, or the packaged vocabulary.

In: a name. Out: transformers' tokenizer, with what the name resolved to, the string of every id, and the ids
that are added to a text. It does not know the model's weights, nor the text.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from neoscope.errors import InputError
from neoscope.hub import loading
from neoscope.text.gpt2 import gpt2_vocabulary
from neoscope.text.tokenizer_files import PACKAGED, find_tokenizer
from neoscope.text.vocabulary import special_ids, vocabulary_strings


@dataclasses.dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer, what it is called, its revision, the string of every id, and the special ids."""

    tokenizer: Any
    name: str
    revision: str | None
    strings: list[str]
    special: list[int]


def load_tokenizer(
    name: str | None, *, revision: str | None, model: str, weights: str
) -> LoadedTokenizer:
    """The tokenizer called `name`, or the model's own where it is None."""
    name, repository = find_tokenizer(name, revision=revision, model=model, weights=weights)
    if name == PACKAGED:
        tokenizer = packaged_tokenizer()
    else:
        from transformers import AutoTokenizer

        with loading(f"the tokenizer {name}", repository):
            tokenizer = AutoTokenizer.from_pretrained(
                name,
                revision=repository.commit or "main",
                local_files_only=True,
                trust_remote_code=False,
            )
    special = special_ids(tokenizer)
    if len(tokenizer) <= len(special):  # transformers makes do without vocabulary files
        raise InputError(f"the tokenizer {name} has no vocabulary: is its tokenizer.json there?")
    return LoadedTokenizer(
        tokenizer, name, repository.commit, vocabulary_strings(tokenizer), special
    )


def packaged_tokenizer() -> Any:
    """GPT-2's vocabulary (50,257 entries), as transformers' tokenizer."""
    from transformers import GPT2Tokenizer  # without the second that AutoTokenizer takes, and torch

    vocabulary, merges = gpt2_vocabulary()
    return GPT2Tokenizer(vocab=vocabulary, merges=merges)


def added_tokens(
    separator: str, bos: bool, tokenizer: LoadedTokenizer
) -> tuple[int | None, int | None]:
    """The ids of the token after each document and of the one before each sequence, None for none."""
    after, before = tokenizer.tokenizer.eos_token_id, tokenizer.tokenizer.bos_token_id
    if separator == "eos" and after is None:
        raise InputError(
            f"--separator eos: the tokenizer {tokenizer.name} has no end-of-text token; "
            "use --separator none"
        )
    if bos and before is None:
        raise InputError(
            f"--bos: the tokenizer {tokenizer.name} has no beginning-of-sequence token; drop it"
        )
    return after if separator == "eos" else None, before if bos else None
