"""Stored values held against a second computation: transformers' own model, and the text again.

In: a verified run. Out: problems. It shares with the run only what the run stored and the names in its
claim: the pass is transformers' eager one in float32, on the CPU unless told otherwise, and not ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neoscope.errors import ConflictError
from neoscope.format import chunks
from neoscope.format.arrays import schemas_of
from neoscope.format.layout import TOKEN_IDS
from neoscope.format.manifest import stored_batches
from neoscope.format.records import each_record
from neoscope.model.hooks import capture
from neoscope.model.loading import find_model, load, pick_device
from neoscope.progress import Progress
from neoscope.reading.dataset import open_arrays, stored_part
from neoscope.reading.inventory import Problem
from neoscope.reading.status import committed
from neoscope.storage.store import Store
from neoscope.text.documents import Documents
from neoscope.text.packing import batches
from neoscope.text.tokenizer import added_tokens, load_tokenizer

# The largest root mean square of a sequence's differences in one layer, as a share of that of its
# values. Two exact float32 passes differ by 1e-6; GPT-Neo's attention is unscaled, so trained weights
# can raise that by some hundred. A pass over other tokens or weights differs by more than 1.
TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}


def recompute(
    store: Store, claim: dict[str, Any], sequences: int, device: str, progress: Progress
) -> Iterator[Problem]:
    """Compute `sequences` of the run's sequences again, spread evenly, and compare every layer."""
    spec, recorded = claim["spec"], claim["model"]
    loaded = load(
        find_model(recorded["name"], revision=recorded["revision"], weights=recorded["weights"]),
        seed=spec["seed"] or 0,
        precision=spec["precision"],
        device=pick_device(device),
        eager=True,
    )
    if loaded.digest != recorded["digest"]:
        raise ConflictError(
            f"the weights of {recorded['name']} are not those of the run: digest {loaded.digest}, "
            f"recorded {recorded['digest']}; give the recorded ones"
        )
    model = loaded.model.float()  # the run's own weights, computed in float32 whatever the run did
    arrays = stored_part(open_arrays(store))
    total = arrays.sizes["sequence"]
    chosen = np.unique(np.linspace(0, total - 1, sequences).round().astype(int))
    limit = max(TOLERANCE[spec["precision"]], TOLERANCE[spec["store_dtype"]])
    progress.begin("recomputing", len(chosen), "sequences")
    for sequence in chosen.tolist():
        one = arrays.isel(sequence=[sequence])
        for name, values in capture(
            model,
            one[TOKEN_IDS].values,
            hook=claim["hook"]["module"],
            hook_side=claim["hook"]["side"],
            layers=claim["hook"]["layers"],
            forward="reference",
        ).items():
            expected = values.to("cpu", torch.float64).numpy()
            stored = one[name].values.astype(np.float64)
            scale = float(np.sqrt(np.mean(expected**2)))
            off = float(np.sqrt(np.mean((stored - expected) ** 2))) / scale if scale else 0.0
            if not off <= limit:
                yield Problem(
                    f"{name}, sequence {sequence}",
                    f"differs from transformers' own pass by {off:.2g} of its size, allowed {limit:.2g}",
                )
        progress.advance(f"sequence {sequence}")
    progress.end()


def retokenize(
    store: Store, claim: dict[str, Any], paths: list[Path], progress: Progress
) -> Iterator[Problem]:
    """Stream the recorded text again and compare its tokens, batch by batch. `paths` are the files of a
    run that was made of local files, seen to be its own."""
    spec, described = claim["spec"], claim["text"]
    tokenizer = load_tokenizer(
        spec["tokenizer"],
        revision=claim["tokenizer"]["revision"],
        model=spec["model"],
        weights=spec["weights"],
    )
    separator, bos = added_tokens(spec["separator"], spec["bos"], tokenizer)
    schema = schemas_of(claim)[TOKEN_IDS]
    found = stored_batches(committed(store))
    progress.begin("reading the text again", sum(found), "batches")
    for partition, count in enumerate(found):
        documents = Documents(described, paths, partition=partition)
        packed = batches(
            documents,
            tokenizer.tokenizer,
            sequences=spec["sequences"],
            positions=spec["positions"],
            separator=separator,
            bos=bos,
        )
        for record in each_record(store, claim, {partition: count}):
            for part in record["arrays"][TOKEN_IDS]["chunks"]:
                if chunks.digest(next(packed).token_ids.astype(schema.dtype)) != part["digest"]:
                    yield Problem(
                        part["key"], "holds other tokens than the recorded text gives now"
                    )
                progress.advance(part["key"])
    progress.end()
