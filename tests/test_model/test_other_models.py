"""Whole runs of a Llama with a SentencePiece-like tokenizer: hooks, token lengths, the beginning-of-
sequence token, and passes over a part of a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from neoscope import capture, load_model
from neoscope.errors import InputError
from neoscope.text.documents import SAMPLE_FILE
from neoscope.text.vocabulary import length_table, special_ids, vocabulary_strings
from support.command import Finished, invoke

SPECIAL = ["<unk>", "<s>", "</s>"]
BOS = 1
LAYERS, NEURONS, SEQUENCES, POSITIONS = 3, 48, 8, 24
DECODERS = {
    "llama": [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ],
    "metaspace": [decoders.ByteFallback(), decoders.Metaspace()],
    "gemma": [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()],
}


def texts() -> list[str]:
    return [json.loads(line)["text"] for line in SAMPLE_FILE.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def learnt() -> dict[str, Any]:
    """A BPE of pieces such as `▁the`, learnt from the packaged sample, as JSON."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    return dict(json.loads(tokenizer.to_str())["model"])


def sentencepiece(learnt: dict[str, Any], decoder: str) -> PreTrainedTokenizerFast:
    """That vocabulary with a token for every byte, and one of the decoders in use."""
    vocabulary = dict(learnt["vocab"])
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(DECODERS[decoder])
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


# Token lengths


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_token_is_as_long_as_what_it_adds(learnt: dict[str, Any], decoder: str) -> None:
    tokenizer = sentencepiece(learnt, decoder)
    table = length_table(vocabulary_strings(tokenizer), special_ids(tokenizer))
    for name, token in tokenizer.get_vocab().items():
        byte = name.startswith("<0x")  # a character where it is ASCII, else a part of one: U+FFFD
        expected = 0 if name in SPECIAL else 1 if byte else len(name)
        assert table[token] == expected, name


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_lengths_of_a_text_add_up_to_it(learnt: dict[str, Any], decoder: str) -> None:
    tokenizer = sentencepiece(learnt, decoder)
    strings = vocabulary_strings(tokenizer)
    for text in texts():
        plain = text.encode("ascii", errors="ignore").decode()
        ids = tokenizer(plain, add_special_tokens=False)["input_ids"]
        assert "".join(strings[token] for token in ids) == f" {plain}"


def test_a_tokenizer_without_a_plain_letter_is_refused() -> None:
    bare = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1}, unk_token="[UNK]"))
    with pytest.raises(InputError, match="no token that is one letter or digit"):
        vocabulary_strings(PreTrainedTokenizerFast(tokenizer_object=bare))


# Runs


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, learnt: dict[str, Any]) -> Path:
    """A Llama with its tokenizer in a folder as from the Hub."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = sentencepiece(learnt, "llama")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=NEURONS,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=BOS,
        eos_token_id=2,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def run(url: Path, model: Path, *options: object) -> Finished:
    size = ("--sequences", SEQUENCES, "--positions", POSITIONS)
    return invoke("run", url, "--model", model, "--dataset", "sample", *size, *options)


def made(url: Path, model: Path, *options: object) -> zarr.Group:
    done = run(url, model, *options)
    assert done.code == 0, done.err
    return zarr.open_group(url / "activations.zarr", mode="r")


def values(group: zarr.Group, name: str) -> np.ndarray[Any, Any]:
    return np.asarray(group[name][...])  # type: ignore[index]


def statistics(url: Path) -> zarr.Group:
    return zarr.open_group(url / "statistics.zarr", mode="r")


def loaded(url: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((url / name).read_bytes()))


def stream_of(model: Path) -> list[int]:
    """The tokens of the sample, one after another."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts()]
    return [token for document in ids for token in document]


@pytest.fixture(scope="module")
def plain(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two batches without any option of this file."""
    url = tmp_path_factory.mktemp("plain") / "run"
    made(url, llama, "--batches", "2")
    return url


def test_a_run_of_a_llama_holds_what_down_proj_is_given(llama: Path, plain: Path) -> None:
    group = zarr.open_group(plain / "activations.zarr", mode="r")
    tokens = values(group, "token_ids")
    assert tokens.ravel().tolist() == stream_of(llama)[: tokens.size]
    model = LlamaForCausalLM.from_pretrained(llama, attn_implementation="eager")
    seen: list[torch.Tensor] = []
    for block in model.model.layers:
        block.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(torch.from_numpy(tokens).long())
    for layer, expected in enumerate(seen):
        stored = values(group, f"MLP_{layer}")
        assert stored.shape == (2 * SEQUENCES, POSITIONS, NEURONS)
        np.testing.assert_allclose(stored, expected, atol=1e-5)


def test_a_run_says_in_words_what_was_hooked(llama: Path, plain: Path) -> None:
    group = zarr.open_group(plain / "activations.zarr", mode="r")
    for layer in range(LAYERS):
        attributes = dict(group[f"MLP_{layer}"].attrs)
        assert "act(gate) * up" in str(attributes["description"])
        assert f"of layer {layer}" in str(attributes["description"])
        assert attributes["hook_point"] == f"model.layers.{layer}.mlp.down_proj"
        assert attributes["hook_side"] == "input"
    assert "every layer" in str(group.attrs["description"])
    for name in ("run.json", "manifest.json"):
        said = loaded(plain, name)
        assert said["hook"]["module"] == "model.layers.*.mlp.down_proj"
        assert said["hook"]["side"] == "input"
        assert said["hook"]["layers"] == [0, 1, 2]
        assert said["model"]["architecture"] == "llama"
        assert said["model"]["forward"] == "transformers, sdpa attention"
        assert (said["model"]["layers"], said["model"]["neurons"]) == (LAYERS, NEURONS)


def test_leading_spaces_count_though_the_decoder_drops_them(llama: Path, plain: Path) -> None:
    group = zarr.open_group(plain / "activations.zarr", mode="r")
    tokenizer = AutoTokenizer.from_pretrained(llama)
    names = tokenizer.convert_ids_to_tokens(values(group, "token_ids").ravel().tolist())
    expected = [1 if name.startswith("<0x") else len(name) for name in names]
    assert values(group, "token_length").ravel().tolist() == expected
    assert any(name.startswith("▁") for name in names)


def test_verify_computes_and_reads_it_again(plain: Path) -> None:
    done = invoke("verify", plain, "--recompute", "3", "--text")
    assert done.code == 0, done.err + done.out


def test_some_layers_of_another_module_are_a_run_too(llama: Path, tmp_path: Path) -> None:
    url = tmp_path / "run"
    hook = "model.layers.*.mlp.gate_proj"
    group = made(url, llama, "--hook", hook, "--layers", "2,0")
    assert set(group.array_keys()) == {"MLP_0", "MLP_2", "token_ids", "token_length"}
    expected = capture(
        load_model(str(llama), device="cpu"), values(group, "token_ids"), hook=hook, layers=[0, 2]
    )
    for name, layer in expected.items():
        np.testing.assert_array_equal(values(group, name), layer.numpy())
    attributes = dict(group["MLP_2"].attrs)
    assert attributes["hook_point"] == "model.layers.2.mlp.gate_proj"
    assert attributes["hook_side"] == "output"
    assert attributes["layer"] == 2
    assert "layers 0, 2" in str(group.attrs["description"])
    assert loaded(url, "manifest.json")["checks"]["layers"]["expected"] == 2
    assert values(statistics(url), "layer").tolist() == [0, 2]
    done = invoke("verify", url, "--recompute", "2")
    assert done.code == 0, done.err + done.out
    done = invoke("pull", url, tmp_path / "part", "--layers", "2")
    assert done.code == 0, done.err
    part = zarr.open_group(tmp_path / "part" / "activations.zarr", mode="r")
    np.testing.assert_array_equal(values(part, "MLP_2"), values(group, "MLP_2"))
    done = invoke("pull", url, tmp_path / "none", "--layers", "1")
    assert (done.code, "has no number 1; it has 0,2" in done.err) == (2, True), done.err


def test_the_reference_forward_is_transformers_eager_one(llama: Path, tmp_path: Path) -> None:
    url = tmp_path / "run"
    made(url, llama, "--forward", "reference")
    assert loaded(url, "run.json")["model"]["forward"] == "transformers, eager attention"


# The beginning-of-sequence token


def test_a_bos_begins_each_sequence_and_counts_as_special(llama: Path, tmp_path: Path) -> None:
    url = tmp_path / "run"
    group = made(url, llama, "--bos", "--batches", "2")
    tokens, lengths = values(group, "token_ids"), values(group, "token_length")
    assert (tokens[:, 0] == BOS).all()
    assert (lengths[:, 0] == 0).all()
    text = tokens[:, 1:].ravel().tolist()
    assert text == stream_of(llama)[: len(text)]
    manifest = loaded(url, "manifest.json")
    assert manifest["tokens"]["special"] == 2 * SEQUENCES
    assert manifest["tokens"]["count"] == 2 * SEQUENCES * POSITIONS
    assert sum(manifest["tokens"]["length"]["histogram"].values()) == len(text)
    for number in (1, 2):
        record = loaded(url, f"records/00000-0000000{number}.json")
        spans = record["documents"]
        assert sum(span["stop"] - span["start"] for span in spans) == SEQUENCES * (POSITIONS - 1)
    done = invoke("verify", url, "--text", "--recompute", "1")
    assert done.code == 0, done.err + done.out


def test_no_bos_is_added_unless_asked_for(llama: Path, plain: Path) -> None:
    """Not even by a tokenizer that would do so by itself."""
    group = zarr.open_group(plain / "activations.zarr", mode="r")
    assert BOS not in values(group, "token_ids")
    assert loaded(plain, "manifest.json")["tokens"]["special"] == 0


# Passes over a part of a batch


@pytest.mark.parametrize("sequences", [1, 2, 4])
@pytest.mark.parametrize("name", ["llama", "gpt-neo"])
def test_passes_over_a_part_of_a_batch_give_the_same_values(
    llama: Path, small_model: Path, plain: Path, tmp_path: Path, name: str, sequences: int
) -> None:
    """Of a Llama in transformers' pass, and of a GPT-Neo in ours."""
    model, undivided = (llama, plain) if name == "llama" else (small_model, tmp_path / "whole")
    if name != "llama":
        made(undivided, model, "--batches", "2")
    whole = zarr.open_group(undivided / "activations.zarr", mode="r")
    url = tmp_path / "run"
    group = made(url, model, "--batches", "2", "--sequences-per-pass", sequences)
    for array in whole.array_keys():
        np.testing.assert_array_equal(values(group, array), values(whole, array))
    for array in statistics(url).array_keys():
        np.testing.assert_array_equal(
            values(statistics(url), array), values(statistics(undivided), array)
        )
    theirs, mine = (loaded(place, "manifest.json") for place in (undivided, url))
    assert mine["arrays"]["MLP_0"]["chunks"][0] == min(sequences, 2)
    if sequences >= 2:  # the same chunks, and so the same bytes
        assert mine["arrays"] == theirs["arrays"]
    assert mine["fingerprint"] != theirs["fingerprint"]


# What does not fit is said


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--weights", "random"], 3, "knows the initial distribution of GPT-Neo only"),
        (["--layers", "0,3"], 3, "has no layer 3; it has 0 to 2"),
        (["--hook", "model.layers.*.mlp.fc"], 3, "near are model.layers.*.mlp"),
        (["--hook", "model.layers.*.self_attn"], 3, "is a tuple"),
        (["--hook", "model.layers"], 2, "has 0 stars"),
        (["--hook-side", "input"], 2, "goes with --hook only"),
        (["--layers", "a"], 2, "no number or range"),
        (["--sequences-per-pass", "3"], 2, "give one of 1, 2, 4, 8"),
        (["--positions", "65"], 3, "longer than the model's 64"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_one_line(
    llama: Path, tmp_path: Path, options: list[str], code: int, words: str
) -> None:
    done = run(tmp_path / "run", llama, *options)
    assert done.code == code, done.err
    assert words in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
