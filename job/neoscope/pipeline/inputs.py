"""What is made ready once for all batches of a partition: model, tokenizer, token lengths and text.

In: a spec, and the claim and last record where there are some. Out: each of them loaded, and what the
names resolved to, as the claim says it. It does not know what is computed from them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from neoscope.model.bare_gpt_neo import BareGPTNeo
from neoscope.errors import InputError
from neoscope.format import chunks
from neoscope.format.records import record_counts
from neoscope.format.vocabulary import vocabulary_content
from neoscope.model.architectures import HookPoint, hook_point
from neoscope.model.hooks import layer_numbers, linear_maps, neuron_counts, takes_fast_path
from neoscope.model.loading import LoadedModel, find_model, load
from neoscope.model.memory import translate_out_of_memory
from neoscope.model.shapes import check_positions
from neoscope.pipeline import memory
from neoscope.pipeline.host_memory import free_host_memory
from neoscope.progress import Progress
from neoscope.spec import SAMPLE, RunSpec
from neoscope.statistics.length_cells import cell_count
from neoscope.text import vocabulary
from neoscope.text.documents import Documents, resolve
from neoscope.text.packing import Batch, batches
from neoscope.text.tokenizer import LoadedTokenizer, added_tokens, load_tokenizer

# Of a partition's tokens and documents that are packed before they are needed: 1000 batches of 8192
# tokens take about so much.
AHEAD_BYTES = 32 << 20
SPAN_BYTES = 256  # of one document of a batch, about


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is loaded once and used for every batch, and what it was resolved to."""

    loaded: LoadedModel
    point: HookPoint
    maps: dict[str, torch.nn.Linear]  # whose inputs the sums by token are of; see `linear_maps`
    tokenizer: LoadedTokenizer
    lengths: npt.NDArray[np.uint16]  # of every token id
    batches: Iterator[tuple[int, Batch]]  # with the count of the record that will name each
    resolved: dict[str, Any]


def prepare(
    spec: RunSpec,
    claim: dict[str, Any] | None,
    partition: int,
    last: dict[str, Any] | None,
    text_paths: list[Path],
    device: torch.device,
    progress: Progress,
) -> Inputs:
    """Model and text, side by side. Too little text shows here where it is a file's: all of the
    partition's batches are then seen to be there.

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
    found = find_model(
        spec.model, revision=revision("model", spec.model_revision), weights=spec.weights
    )
    point = hook_point(found.config.model_type, spec.hook, spec.hook_side)
    _check_fit(spec, found.config, tokenizer)
    with ThreadPoolExecutor(1) as pool:
        model = pool.submit(
            load,
            found,
            seed=spec.seed or 0,
            precision=spec.precision,
            device=device,
            eager=spec.forward == "reference",
            bare=takes_fast_path(found.config.model_type, point, spec.forward),
        )
        described = claim["text"] if claim and spec.dataset != SAMPLE else resolve(spec, text_paths)
        share = _Share(spec, described, text_paths, partition, tokenizer)
        packed = _packed(share, last, progress)
        first = list(itertools.islice(packed, 1))
        loaded = model.result()
    return Inputs(
        loaded,
        point,
        linear_maps(loaded.model, point, spec.layers),
        tokenizer,
        vocabulary.length_table(tokenizer.strings, tokenizer.special),
        itertools.chain(first, packed),
        {**_describe(spec, loaded, point, tokenizer), "text": described},
    )


def of_partition(
    prepared: Inputs,
    spec: RunSpec,
    partition: int,
    last: dict[str, Any] | None,
    text_paths: list[Path],
    progress: Progress,
) -> Inputs:
    """The same with the batches of another partition, from where its last record stands."""
    share = _Share(spec, prepared.resolved["text"], text_paths, partition, prepared.tokenizer)
    return dataclasses.replace(prepared, batches=_packed(share, last, progress))


def _packed(
    share: _Share, last: dict[str, Any] | None, progress: Progress
) -> Iterator[tuple[int, Batch]]:
    """The partition's batches from where its last record stands, each with the count of its record."""
    first = last["batches"] if last else 0
    return _by_record(share.spec, _seen(share, last, progress), first)


@dataclasses.dataclass(frozen=True)
class _Share:
    """A partition's share of the text, which can be packed from any resume state."""

    spec: RunSpec
    described: dict[str, Any]
    text_paths: list[Path]
    partition: int
    tokenizer: LoadedTokenizer

    def batches(self, first: int, resume_state: dict[str, Any] | None) -> Iterator[Batch]:
        """The batches from number `first` on, at whose beginning `resume_state` stands; None at the start."""
        spec = self.spec
        resume_state = resume_state or {"stream": None, "offset": 0}
        separator, bos = added_tokens(spec.separator, spec.bos, self.tokenizer)
        documents = Documents(
            self.described,
            self.text_paths,
            partition=self.partition,
            resume_state=resume_state["stream"],
        )
        whole = spec.partitions == 1
        return batches(
            documents,
            self.tokenizer.tokenizer,
            sequences=spec.sequences,
            positions=spec.positions,
            separator=separator,
            bos=bos,
            offset=resume_state["offset"],
            first=first,
            source="the text" if whole else f"the text's share of partition {self.partition}",
            stop=spec.text_end == "stop",
        )


def _seen(share: _Share, last: dict[str, Any] | None, progress: Progress) -> Iterator[Batch]:
    """The partition's batches from its last record on, all of them seen to be there in files.

    What has been packed is kept up to AHEAD_BYTES, and so not tokenized twice. Only of more than
    that the rest is packed once to see that it is there, at the partition's first start.
    A data set is not looked through: it may be endless, and each of its batches costs the network. Nor is
    what may end.
    """
    first, resume_state = (last["batches"], last["resume_state"]) if last else (0, None)
    packed = share.batches(first, resume_state)
    if share.described["source"] == "dataset" or share.spec.text_end == "stop":
        return packed
    kept: list[Batch] = []
    missing, held = share.spec.batches - first, 0
    while missing and held < AHEAD_BYTES:
        kept.append(next(packed))
        held += kept[-1].token_ids.nbytes + SPAN_BYTES * len(kept[-1].documents)
        missing -= 1
    if missing and not last:
        progress.begin("counting tokens", missing, "batches")
        ahead = share.batches(first + len(kept), kept[-1].resume_state)
        for _ in itertools.islice(ahead, missing):
            progress.advance("counting tokens")
        progress.end()
    return itertools.chain(kept, packed)


def _by_record(spec: RunSpec, packed: Iterator[Batch], first: int) -> Iterator[tuple[int, Batch]]:
    """The same batches; those of one record are packed before the first of them is given away, so
    that text that ends sooner than was asked for leaves nothing computed that no record names."""
    for count in record_counts(spec.to_json()):
        if count > first:
            found = list(itertools.islice(packed, count - first))
            first += len(found)
            yield from ((first, batch) for batch in found)
            if first < count:
                return


def _describe(
    spec: RunSpec, loaded: LoadedModel, point: HookPoint, tokenizer: LoadedTokenizer
) -> dict[str, dict[str, Any]]:
    """What model, hook and tokenizer resolved to, as the claim says it."""
    model = loaded.model
    attention = model.config._attn_implementation
    fast = takes_fast_path(model.config.model_type, point, spec.forward)
    maps = linear_maps(model, point, spec.layers)
    with translate_out_of_memory(lambda: memory.ran_out(spec)):  # where cuBLAS takes its workspace
        neurons = _neurons(spec, model, point)
    text = model.config.get_text_config()
    sizes = memory.Sizes(
        layers=len(layer_numbers(model, point, spec.layers)),
        neurons=neurons,
        hidden=text.hidden_size,
        heads=text.num_attention_heads,
        cells=cell_count(vocabulary.length_table(tokenizer.strings, tokenizer.special)),
        ours=fast,
        eager=attention == "eager" and not fast,
        vocabulary=len(tokenizer.strings),
        inputs=next((each.in_features for each in maps.values()), None),
    )
    memory.check_token_sums(spec, sizes, free_host_memory())
    memory.check_pass(spec, sizes, model.device)
    return {
        "model": {
            "name": spec.model,
            "revision": loaded.revision,
            "weights": spec.weights,
            "digest": loaded.digest,
            "architecture": model.config.model_type,
            "layers": len(layer_numbers(model, point)),
            "neurons": neurons,
            "forward": "neoscope" if fast else f"transformers, {attention} attention",
        },
        "hook": {
            "module": point.module,
            "side": point.side,
            "value": point.value,
            "layers": layer_numbers(model, point, spec.layers),
        },
        "tokenizer": {
            "name": tokenizer.name,
            "revision": tokenizer.revision,
            "size": len(tokenizer.strings),
            "vocabulary_digest": chunks.bytes_digest(
                vocabulary_content(tokenizer.strings, tokenizer.special)
            ),
        },
    }


def _neurons(spec: RunSpec, model: PreTrainedModel | BareGPTNeo, point: HookPoint) -> int:
    """The one number of neurons that every layer of the run has there."""
    counts = neuron_counts(model, point, spec.layers, spec.forward)
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(
            f"the layers have different numbers of neurons ({each}), and a run has one: choose "
            "layers that are alike with --layers"
        )
    return counts.popitem()[1]


def _check_fit(spec: RunSpec, config: PreTrainedConfig, tokenizer: LoadedTokenizer) -> None:
    config = config.get_text_config()
    # Some multimodal families have special tokens beyond a text model's vocabulary.
    if set(range(config.vocab_size, len(tokenizer.strings))) - set(tokenizer.special):
        raise InputError(
            f"the tokenizer {tokenizer.name} does not fit the model: it has "
            f"{len(tokenizer.strings)} tokens, the model {config.vocab_size}"
        )
    check_positions(spec.positions, getattr(config, "max_position_embeddings", spec.positions))
