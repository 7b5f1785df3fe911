"""Tokens packed into batches of exactly `sequences x positions`.

In: a stream of documents and a tokenizer. Out: batches, each with the documents that it holds and
the resume state from which the next one begins, as plain JSON. It does not know what the text
is, where it comes from, or what becomes of a batch.

Batch k is tokens [n k, n (k + 1)) of the stream: documents are joined in order with nothing
between them (or one separator token after each), and the rest of a cut document begins the next
batch. A beginning-of-sequence token is put before the text of each sequence, is of no document, and
takes one of its positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from neoscope.errors import InputError


class TooLittleText(InputError):
    """The text does not fill the batches that were asked for."""


class DocumentStream(Protocol):
    """Documents in order, with a state to resume from that can be written down."""

    def next(self) -> tuple[str, str] | None:
        """The next document as (id, text); None at the end."""

    def resume_state(self) -> dict[str, Any]:
        """The state before the next document, as plain JSON."""


@dataclasses.dataclass(frozen=True)
class Span:
    """The tokens [start, stop) of a document of `tokens` tokens that lie in one batch.

    A separator counts as the last token of its document.
    """

    id: str
    tokens: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Batch:
    """int32 `token_ids` [sequence, position], its documents, and the state to resume from after it."""

    token_ids: npt.NDArray[np.int32]
    documents: tuple[Span, ...]
    resume_state: dict[str, Any]


def batches(
    stream: DocumentStream,
    tokenizer: Any,
    *,
    sequences: int,
    positions: int,
    separator: int | None = None,
    bos: int | None = None,
    offset: int = 0,
    first: int = 0,
    source: str = "the text",
    stop: bool = False,
) -> Iterator[Batch]:
    """Batches of `sequences x positions` tokens until the stream ends; a last incomplete one is an error, or
    with `stop` left out.

    `stream` stands at the first document, of which `offset` tokens are already used, by `first`
    batches; `source` is what the stream is called. `Batch.resume_state` is
    `{"stream": state, "offset": tokens}` for the batch after it.
    Raises TooLittleText when the text ends inside a batch, so that a caller who needs no further
    batch must not ask for one.
    """
    size = sequences * (positions if bos is None else positions - 1)
    skip, have = offset, 0
    parts: list[npt.NDArray[np.int32]] = []
    spans: list[Span] = []
    while True:
        before = stream.resume_state()
        document = stream.next()
        if document is None:
            if stop:
                return
            raise _too_little(source, first, have, size)
        name, text = document
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if separator is not None:
            ids = [*ids, separator]
        tokens = np.asarray(ids, dtype=np.int32)
        used, skip = skip, 0
        while True:
            take = min(size - have, len(tokens) - used)
            parts.append(tokens[used : used + take])
            spans.append(Span(name, len(tokens), used, used + take))
            have, used = have + take, used + take
            if have < size:
                break
            whole = used == len(tokens)
            yield Batch(
                token_ids=_sequences(np.concatenate(parts), sequences, bos),
                documents=tuple(spans),
                resume_state={
                    "stream": stream.resume_state() if whole else before,
                    "offset": 0 if whole else used,
                },
            )
            parts, spans, have, first = [], [], 0, first + 1
            if whole:
                break


def _too_little(source: str, whole: int, have: int, size: int) -> TooLittleText:
    """Text that ended `have` tokens after `whole` batches of `size` tokens."""
    if whole:
        number = "1 batch" if whole == 1 else f"{whole:,} batches"
        return TooLittleText(f"{source} fills {number} of {size:,} tokens: use --batches {whole}")
    return TooLittleText(
        f"{source} has too few tokens, {have:,} for a batch of {size:,}: give more text, or lower "
        "--sequences or --positions"
    )


def _sequences(
    tokens: npt.NDArray[np.int32], sequences: int, bos: int | None
) -> npt.NDArray[np.int32]:
    """Tokens in rows [sequence, position], each begun with `bos` where there is one."""
    rows = tokens.reshape(sequences, -1)
    return rows if bos is None else np.insert(rows, 0, bos, axis=1)
