"""The pipeline: text -> tokens -> batch -> hooked forward -> chunks -> record -> manifest.

In: a spec and a place. Out: a committed run there. It puts the pieces together and times them; each
step is a module of its own.
"""

from __future__ import annotations

import itertools
import json
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from neoscope import chunks, lengths, records, text
from neoscope.arrays import TOKEN_IDS, TOKEN_LENGTH, ArraySchema, array_schemas
from neoscope.batch import Batch, batches
from neoscope.capture import stream
from neoscope.chunks import StoredChunk
from neoscope.commit import commit, schemas_of
from neoscope.errors import CheckError, InputError
from neoscope.model import LoadedModel, LoadedTokenizer, load, load_tokenizer, pick_device
from neoscope.progress import Progress
from neoscope.spec import RunSpec
from neoscope.storage import Store
from neoscope.writer import LayerWriter, put_array

LIBRARIES = (
    "neoscope",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "numpy",
    "zarr",
    "obstore",
)


def make(
    spec: RunSpec,
    store: Store,
    *,
    claim: dict[str, Any] | None,
    text_paths: list[Path],
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    """Make the run of `spec` in `store` and return its manifest.

    `claim` is the one that is already there, if any. `text_paths` are the files that `spec.text`
    describes. `device` is `auto`, `cpu` or `cuda`.
    """
    began = time.perf_counter()
    timings: dict[str, float] = {}
    target = pick_device(device)
    with _timed(timings, "prepare"):
        loaded, tokenizer, packed, resolved = _prepare(spec, claim, text_paths, progress)
        loaded.model.to(target)
    environment = _environment(target)
    with _timed(timings, "claim"):
        if claim is None:
            config = loaded.model.config
            schemas = array_schemas(spec, layers=config.num_layers, neurons=_neurons(loaded))
            claim = records.put_claim(
                store,
                spec,
                resolved=resolved,
                arrays={name: schema.to_json() for name, schema in schemas.items()},
                environment=environment,
            )
        records.check_resolved(store, claim, resolved)
        store.put(records.VOCABULARY, _vocabulary(tokenizer))
    _store_batches(spec, store, claim, loaded, tokenizer, packed, environment, progress)
    progress.say("committing")
    timings["total"] = time.perf_counter() - began
    manifest = commit(store, claim, environment=environment, timings=timings)
    if manifest is None:
        raise CheckError(f"records are missing in {store.url}/records: delete the run")
    return manifest


def _prepare(
    spec: RunSpec, claim: dict[str, Any] | None, text_paths: list[Path], progress: Progress
) -> tuple[LoadedModel, LoadedTokenizer, Iterator[Batch], dict[str, Any]]:
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
        found = claim["text"] if claim and spec.dataset_split else text.resolve(spec)
        packed = _packed(spec, found, text_paths, tokenizer)
        first = next(packed)
        loaded = model.result()
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
    resolved = {
        "model": {
            "name": spec.model,
            "revision": loaded.revision,
            "weights": spec.weights,
            "digest": loaded.digest,
            "layers": config.num_layers,
            "neurons": _neurons(loaded),
        },
        "tokenizer": {
            "name": tokenizer.name,
            "revision": tokenizer.revision,
            "size": len(tokenizer.strings),
            "vocabulary_digest": chunks.bytes_digest(_vocabulary(tokenizer)),
        },
        "text": found,
    }
    return loaded, tokenizer, itertools.chain([first], packed), resolved


def _neurons(loaded: LoadedModel) -> int:
    return int(loaded.model.transformer.h[0].mlp.c_fc.out_features)


def _packed(
    spec: RunSpec, found: dict[str, Any], text_paths: list[Path], tokenizer: LoadedTokenizer
) -> Iterator[Batch]:
    separator = None
    if spec.separator == "eos":
        separator = tokenizer.tokenizer.eos_token_id
        if separator is None:
            raise InputError(
                f"--separator eos: the tokenizer {tokenizer.name} has no end-of-text token; "
                "use --separator none"
            )
    return batches(
        text.Documents(found, text_paths),
        tokenizer.tokenizer,
        sequences=spec.sequences,
        positions=spec.positions,
        separator=separator,
    )


def _vocabulary(tokenizer: LoadedTokenizer) -> bytes:
    """The bytes of vocabulary.json: the string of every token id, index = id, and the special ids."""
    document = {
        "kind": "neoscope.vocabulary",
        "version": 0,
        "special": tokenizer.special,
        "tokens": tokenizer.strings,
    }
    return json.dumps(document, ensure_ascii=False, indent=0).encode() + b"\n"


def _store_batches(
    spec: RunSpec,
    store: Store,
    claim: dict[str, Any],
    loaded: LoadedModel,
    tokenizer: LoadedTokenizer,
    packed: Iterator[Batch],
    environment: dict[str, Any],
    progress: Progress,
) -> None:
    """Compute and store every batch of the partition, each with its record."""
    schemas = schemas_of(claim)
    table = lengths.length_table(tokenizer.strings, tokenizer.special)
    layer = next(iter(schemas.values()))
    progress.begin("capturing", spec.batches * claim["model"]["layers"], "layers")
    with closing(LayerWriter(store, layer, loaded.model.device)) as writer:
        for number in range(spec.batches):
            timings: dict[str, float] = {}
            with _timed(timings, "text"):
                batch = next(packed)
            token_lengths = table[batch.token_ids]

            def take(name: str, values: torch.Tensor, number: int = number) -> None:
                writer.write(schemas[name], number, values)
                progress.advance(f"batch {number + 1} of {spec.batches}, {name}")

            with _timed(timings, "capture"):
                stream(loaded.model, batch.token_ids, [take])
            with _timed(timings, "store"):
                stored = writer.finish()
                for name, values in (
                    (TOKEN_IDS, batch.token_ids),
                    (TOKEN_LENGTH, token_lengths),
                ):
                    stored[name] = [put_array(store, schemas[name], number, values)]
            with _timed(timings, "read_back"):
                read_back = _read_back(store, schemas, stored, number)
            counts = lengths.histogram(token_lengths)
            records.put_record(
                store,
                claim,
                partition=0,
                batches=number + 1,
                arrays=stored,
                batch=batch,
                histogram=counts,
                special=spec.tokens_per_batch - sum(counts.values()),
                read_back=read_back,
                environment=environment,
                timings=timings,
            )
    progress.end()


def _read_back(
    store: Store,
    schemas: dict[str, ArraySchema],
    stored: dict[str, list[StoredChunk]],
    batch: int,
) -> dict[str, str]:
    """Read one chunk of every layer from the store and compare it with what was computed.

    The chunk differs from layer to layer and batch to batch. Returns its key by layer.
    """
    keys = {}
    for index, (name, parts) in enumerate(stored.items()):
        if name in (TOKEN_IDS, TOKEN_LENGTH):
            continue
        part = parts[(batch + index) % len(parts)]
        body = store.get(part.key)
        try:
            same = (
                body is not None
                and chunks.digest(chunks.decode(schemas[name], body)) == part.digest
            )
        except ValueError:
            same = False
        if not same:
            raise CheckError(
                f"{store.url}/{part.key} does not read back as it was stored: "
                "the storage or the way to it is faulty; nothing is committed"
            )
        keys[name] = part.key
    return keys


def _environment(device: torch.device) -> dict[str, Any]:
    """What the run was made with; recorded, but no part of what it is."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)",
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
    }


@contextmanager
def _timed(timings: dict[str, float], step: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    timings[step] = time.perf_counter() - began
