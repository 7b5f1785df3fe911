"""What is made ready once for all batches of a partition: model, tokenizer, token lengths and text.

In: a spec, and the claim and last record where there are some. Out: each of them loaded, and what the
names resolved to, as the claim says it. It does not know what is computed from them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neoscope import chunks, lengths, text
from neoscope.batch import Batch, batches
from neoscope.errors import InputError
from neoscope.model import LoadedModel, LoadedTokenizer, load, load_tokenizer
from neoscope.progress import Progress
from neoscope.spec import SAMPLE, RunSpec


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What is loaded once and used for every batch, and what it was resolved to."""

    loaded: LoadedModel
    tokenizer: LoadedTokenizer
    lengths: npt.NDArray[np.uint16]  # of every token id
    batches: Iterator[Batch]
    resolved: dict[str, Any]


def prepare(
    spec: RunSpec,
    claim: dict[str, Any] | None,
    partition: int,
    last: dict[str, Any] | None,
    text_paths: list[Path],
    progress: Progress,
) -> Prepared:
    """Model and text, side by side; the first batch is packed, so that too little text shows here.

    A claim that is already there says which revisions: they are resolved once for all workers.
    """
    progress.say(f"preparing {spec.model} ({spec.weights} weights) and the text")

    def revision(part: str, asked: str | None) -> str | None:
        return claim[part]["revision"] if claim else asked

    # Before the threads part: transformers' lazy imports are not safe from two at once.
    tokenizer = load_tokenizer(
        spec.tokenizer,
        revision=revision("tokenizer", None if spec.tokenizer else spec.model_revision),
        model=spec.model,
        weights=spec.weights,
    )
    with ThreadPoolExecutor(1) as pool:
        model = pool.submit(
            load,
            spec.model,
            revision=revision("model", spec.model_revision),
            weights=spec.weights,
            seed=spec.seed or 0,
            precision=spec.precision,
        )
        found = claim["text"] if claim and spec.dataset != SAMPLE else text.resolve(spec)
        position: dict[str, Any] = last["position"] if last else {"stream": None, "offset": 0}
        documents = text.Documents(
            found,
            text_paths,
            partition=partition,
            partitions=spec.partitions,
            position=position["stream"],
        )
        packed = batches(
            documents,
            tokenizer.tokenizer,
            sequences=spec.sequences,
            positions=spec.positions,
            separator=_separator(spec, tokenizer),
            offset=position["offset"],
        )
        first = next(packed)
        loaded = model.result()
    _check_fit(spec, loaded, tokenizer)
    return Prepared(
        loaded,
        tokenizer,
        lengths.length_table(tokenizer.strings, tokenizer.special),
        itertools.chain([first], packed),
        {**_describe(spec, loaded, tokenizer), "text": found},
    )


def _describe(
    spec: RunSpec, loaded: LoadedModel, tokenizer: LoadedTokenizer
) -> dict[str, dict[str, Any]]:
    """What model and tokenizer resolved to, as the claim says it."""
    return {
        "model": {
            "name": spec.model,
            "revision": loaded.revision,
            "weights": spec.weights,
            "digest": loaded.digest,
            "layers": loaded.model.config.num_layers,
            "neurons": loaded.model.transformer.h[0].mlp.c_fc.out_features,
        },
        "tokenizer": {
            "name": tokenizer.name,
            "revision": tokenizer.revision,
            "size": len(tokenizer.strings),
            "vocabulary_digest": chunks.bytes_digest(vocabulary(tokenizer)),
        },
    }


def _check_fit(spec: RunSpec, loaded: LoadedModel, tokenizer: LoadedTokenizer) -> None:
    config = loaded.model.config
    if len(tokenizer.strings) > config.vocab_size:
        raise InputError(
            f"the tokenizer {tokenizer.name} does not fit the model: it has "
            f"{len(tokenizer.strings)} tokens, the model {config.vocab_size}"
        )
    if spec.positions > config.max_position_embeddings:
        raise InputError(
            f"--positions {spec.positions} is longer than the model's "
            f"{config.max_position_embeddings} positions: lower it"
        )


def _separator(spec: RunSpec, tokenizer: LoadedTokenizer) -> int | None:
    """The id of the token after each document, None for none."""
    if spec.separator == "none":
        return None
    separator: int | None = tokenizer.tokenizer.eos_token_id
    if separator is None:
        raise InputError(
            f"--separator eos: the tokenizer {tokenizer.name} has no end-of-text token; "
            "use --separator none"
        )
    return separator


def vocabulary(tokenizer: LoadedTokenizer) -> bytes:
    """The bytes of vocabulary.json: the string of every token id, index = id, and the special ids."""
    document = {
        "kind": "neoscope.vocabulary",
        "version": 0,
        "special": tokenizer.special,
        "tokens": tokenizer.strings,
    }
    return json.dumps(document, ensure_ascii=False, indent=0).encode() + b"\n"
