"""Hooks: what is captured is c_fc of transformers' own hidden states, and nothing stays behind."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from transformers import GPTNeoConfig, GPTNeoForCausalLM

import neoscope
from neoscope.errors import InputError
from neoscope.model.architectures import ARCHITECTURES, hook_point
from neoscope.model.hooks import Consumer, capture, hook_points, linear_maps, stream

VOCABULARY, POSITIONS, WINDOW = 101, 40, 8


def build(kinds: list[str]) -> GPTNeoForCausalLM:
    """Four layers with these kinds of attention in turn, a window much shorter than the positions,
    and weights so large that attention and every bias matter."""
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_layers=4,
        num_heads=4,
        window_size=WINDOW,
        attention_types=[[kinds, 4 // len(kinds)]],
        max_position_embeddings=POSITIONS,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPTNeoForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def model() -> GPTNeoForCausalLM:
    return build(["global", "local"])


@pytest.fixture(scope="module")
def token_ids() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (3, POSITIONS), generator=generator)


def recomputed(model: GPTNeoForCausalLM, token_ids: torch.Tensor) -> list[torch.Tensor]:
    """Every layer's c_fc from transformers' hidden states: each is what enters a block."""
    output = model.transformer(token_ids, output_hidden_states=True)
    layers = []
    for hidden, block in zip(output.hidden_states, model.transformer.h, strict=False):
        attended = hidden + block.attn(block.ln_1(hidden))[0]
        layers.append(
            torch.nn.functional.linear(
                block.ln_2(attended), block.mlp.c_fc.weight, block.mlp.c_fc.bias
            )
        )
    return layers


def hooks(model: GPTNeoForCausalLM) -> int:
    """How many hooks are on the model, and how many of its modules are patched."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return sum(
        sum(len(getattr(module, kind)) for kind in kinds) + ("forward" in vars(module))
        for module in model.modules()
    )


@pytest.mark.parametrize("forward", ["fast", "reference"])
def test_every_layer_is_c_fc_of_the_hidden_states(
    model: GPTNeoForCausalLM, token_ids: torch.Tensor, forward: str
) -> None:
    layers = capture(model, token_ids, forward=forward)
    expected = recomputed(model, token_ids)
    assert list(layers) == ["MLP_0", "MLP_1", "MLP_2", "MLP_3"]
    for values, truth in zip(layers.values(), expected, strict=True):
        assert values.shape == (3, POSITIONS, 128)
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("forward", ["fast", "reference"])
def test_a_local_layer_sees_its_window_and_no_further(
    token_ids: torch.Tensor, forward: str
) -> None:
    local = build(["local"])
    changed = token_ids.clone()
    changed[:, 0] = (changed[:, 0] + 1) % VOCABULARY
    before, after = (capture(local, ids, forward=forward)["MLP_1"] for ids in (token_ids, changed))
    reach = 2 * (WINDOW - 1)  # of two layers
    differs = (before != after).any(dim=2).all(dim=0)
    assert differs.tolist() == [position <= reach for position in range(POSITIONS)]


def test_values_are_before_gelu(model: GPTNeoForCausalLM, token_ids: torch.Tensor) -> None:
    """GELU gives nothing below -0.17."""
    assert all(values.min() < -0.5 for values in capture(model, token_ids).values())


@pytest.mark.parametrize("forward", ["fast", "reference"])
def test_what_is_captured_is_the_callers_own(
    model: GPTNeoForCausalLM, token_ids: torch.Tensor, forward: str
) -> None:
    first = capture(model, token_ids, forward=forward)
    kept = {name: values.clone() for name, values in first.items()}
    again = capture(model, token_ids.flip(0), forward=forward)
    for name, values in first.items():
        assert torch.equal(values, kept[name])
        assert torch.equal(again[name].flip(0), values) or torch.allclose(
            again[name].flip(0), values, atol=1e-5
        )


@pytest.mark.parametrize(
    "convert",
    [
        torch.Tensor.tolist,
        torch.Tensor.numpy,
        lambda ids: ids.to(torch.int32),
        lambda ids: ids.numpy().astype(np.uint16),
        lambda ids: xarray.DataArray(ids.numpy().astype(np.int32), dims=("sequence", "position")),
    ],
    ids=["list", "numpy", "int32", "uint16", "xarray"],
)
def test_token_ids_may_be_any_integers(
    model: GPTNeoForCausalLM, token_ids: torch.Tensor, convert: Any
) -> None:
    expected = capture(model, token_ids)
    found = capture(model, convert(token_ids))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("forward", ["fast", "reference"])
def test_consumers_get_each_layer_in_order_as_it_appears(
    model: GPTNeoForCausalLM, token_ids: torch.Tensor, forward: str
) -> None:
    told: list[tuple[str, str]] = []
    computed: list[int] = []
    watches = [
        block.ln_1.register_forward_hook(lambda *_, layer=layer: computed.append(layer))
        for layer, block in enumerate(model.transformer.h)
    ]

    def first(name: str, values: torch.Tensor) -> None:
        told.append(("first", name))
        assert max(computed) == int(name.removeprefix("MLP_"))  # no later layer has begun

    def second(name: str, values: torch.Tensor) -> None:
        told.append(("second", name))

    try:
        stream(model, token_ids, [first, second], forward=forward)
    finally:
        for watch in watches:
            watch.remove()
    assert told == [
        (consumer, f"MLP_{layer}") for layer in range(4) for consumer in ("first", "second")
    ]


@pytest.mark.parametrize("forward", ["fast", "reference"])
def test_consumers_of_inputs_get_what_the_outputs_are_made_of(
    model: GPTNeoForCausalLM, token_ids: torch.Tensor, forward: str
) -> None:
    point = ARCHITECTURES["gpt_neo"]
    found: dict[str, dict[str, torch.Tensor]] = {"inputs": {}, "outputs": {}}

    def keep(kind: str) -> Consumer:
        return lambda name, values: found[kind].update({name: values.clone()})

    stream(model, token_ids, [keep("outputs")], forward=forward, inputs=[keep("inputs")])
    maps = linear_maps(model, point)
    assert list(maps) == list(found["inputs"]) == list(found["outputs"])
    for name, linear in maps.items():
        assert found["inputs"][name].shape == (3, POSITIONS, 32)
        torch.testing.assert_close(linear(found["inputs"][name]), found["outputs"][name])


def test_linear_maps_are_those_whose_inputs_say_the_same_in_fewer_numbers(
    model: GPTNeoForCausalLM,
) -> None:
    inner = ARCHITECTURES["gpt_neo"]
    assert [each.in_features for each in linear_maps(model, inner, [1, 3]).values()] == [32, 32]
    assert linear_maps(model, hook_point("gpt_neo", inner.module, "input")) == {}
    outer = "transformer.h.*.mlp.c_proj"
    for module, side in ((outer, "output"), (outer, "input"), ("transformer.h.*.mlp", "output")):
        assert linear_maps(model, hook_point("gpt_neo", module, side)) == {}  # type: ignore[arg-type]
    c_fc = model.transformer.h[2].mlp.c_fc
    c_fc.forward = c_fc.forward  # as an adapter or accelerate does
    try:
        assert linear_maps(model, inner) == {}
        assert linear_maps(model, inner, [0, 1])
    finally:
        del c_fc.forward


@pytest.mark.parametrize("forward", ["fast", "reference"])
def test_nothing_after_the_last_hook_point_is_computed(
    model: GPTNeoForCausalLM, token_ids: torch.Tensor, forward: str
) -> None:
    computed: list[str] = []
    last = model.transformer.h[-1].mlp
    watches = [
        module.register_forward_hook(lambda *_, name=name: computed.append(name))
        for name, module in (
            ("c_proj", last.c_proj),
            ("ln_f", model.transformer.ln_f),
            ("lm_head", model.lm_head),
        )
    ]
    capture(model, token_ids, forward=forward)
    for watch in watches:
        watch.remove()
    assert computed == []


@pytest.mark.parametrize("forward", ["fast", "reference"])
@pytest.mark.parametrize("fails_at", [None, "MLP_0", "MLP_2", "MLP_3"])
def test_no_hook_stays_behind_even_when_a_consumer_raises(
    model: GPTNeoForCausalLM, token_ids: torch.Tensor, forward: str, fails_at: str | None
) -> None:
    seen: list[str] = []

    def consume(name: str, values: torch.Tensor) -> None:
        seen.append(name)
        if name == fails_at:
            raise KeyboardInterrupt(name)

    if fails_at:
        with pytest.raises(KeyboardInterrupt, match=fails_at):
            stream(model, token_ids, [consume], forward=forward)
    else:
        stream(model, token_ids, [consume], forward=forward)
    assert seen[-1] == (fails_at or "MLP_3")
    assert hooks(model) == 0


def test_hooks_of_the_users_own_stay(model: GPTNeoForCausalLM, token_ids: torch.Tensor) -> None:
    seen: list[torch.Size] = []
    hook = model.transformer.h[1].mlp.c_fc.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.shape)
    )
    capture(model, token_ids)
    assert hooks(model) == 1
    hook.remove()
    assert seen == [(3, POSITIONS, 128)]


def test_what_is_captured_can_be_worked_on_in_place(
    model: GPTNeoForCausalLM, token_ids: torch.Tensor
) -> None:
    values = capture(model, token_ids)["MLP_0"]
    values -= values.mean()
    assert values.requires_grad_().sum().requires_grad


def test_the_packages_names_are_functions_whatever_was_imported_before() -> None:
    """A module of the same name must not take the function's place."""
    functions = {"capture", "load_model", "load_tokenizer", "open_run", "open_statistics", "run"}
    assert functions <= {*neoscope.__all__}
    for name in sorted(functions) * 2:
        assert inspect.isfunction(getattr(neoscope, name)), name


def test_hook_points_are_every_blocks_c_fc(model: GPTNeoForCausalLM) -> None:
    points = hook_points(model, ARCHITECTURES["gpt_neo"])
    assert list(points) == ["MLP_0", "MLP_1", "MLP_2", "MLP_3"]
    for layer, module in enumerate(points.values()):
        assert module is model.get_submodule(f"transformer.h.{layer}.mlp.c_fc")


def test_no_gradients_are_kept(token_ids: torch.Tensor) -> None:
    trainable = build(["global"]).requires_grad_(True)
    assert not any(v.requires_grad for v in capture(trainable, token_ids).values())


@pytest.mark.parametrize(
    ("token_ids", "words"),
    [
        ([[VOCABULARY]], "token id 101 is not in the model's vocabulary of 101"),
        ([[0, -1]], "token id -1 is not in the model's vocabulary"),
        ([[0] * (POSITIONS + 1)], "41 positions are longer than the model's 40"),
        ([0, 1], r"must be integers \[sequence, position\], not torch.int64 \[2\]"),
        ([[[0]]], r"must be integers .* \[1, 1, 1\]"),
        ([[0.0]], "must be integers .* torch.float"),
        ([[]], "must be integers"),
        (np.zeros((0, 4), dtype=np.int64), r"must be integers .* \[0, 4\]"),
        ([[True, False]], "must be integers"),
        ([[1j]], "must be integers"),
        ([[1, 2], [3]], "must be integers"),
        ([["a"]], "must be integers"),
    ],
    ids=str,
)
def test_token_ids_that_do_not_fit_are_refused_in_words(
    model: GPTNeoForCausalLM, token_ids: Any, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        capture(model, token_ids)
    assert hooks(model) == 0
