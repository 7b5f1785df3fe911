"""GPT-2's vocabulary, which is GPT-Neo's too: 50,257 tokens, from the merges that OpenAI published.

In: the file beside this one. Out: what a byte-pair tokenizer is made of. It imports nothing heavy, and does
not know transformers' tokenizer.

The merges are the whole vocabulary: its ids are the 256 bytes, what each merge makes, and the end of text
(the published encoder.json, byte for byte; the tests hold it to that file's digest).
"""

from __future__ import annotations

from pathlib import Path

MERGES_FILE = Path(__file__).parent / "gpt2_merges.txt"
END_OF_TEXT = "<|endoftext|>"


def gpt2_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The id of every token, in the order of ids, and the merges in the order of their rank."""
    _version, *lines = MERGES_FILE.read_text("utf-8").splitlines()
    merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
    tokens = [*_letters(), *(left + right for left, right in merges), END_OF_TEXT]
    return {token: number for number, token in enumerate(tokens)}, merges


def _letters() -> list[str]:
    """The characters that stand for the 256 bytes: printable ones of Latin-1 for themselves, then U+0100
    and on for the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
