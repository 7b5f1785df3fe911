"""Every architecture of the table against plain hooks on transformers' own eager model, and any other
module by its name. The differences are printed as a table row each: `make test ARGS="-rP
tests/test_architectures.py"`.

What is expected is put together here, from the parts of each block, without the table.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import neoscope
from neoscope.commands.plan import model_shape
from neoscope.errors import InputError, UsageError
from neoscope.model.architectures import ARCHITECTURES
from neoscope.model.hooks import stream, takes_fast_path
from neoscope.pipeline.inputs import _neurons
from neoscope.spec import RunSpec

VOCABULARY, POSITIONS, LAYERS = 97, 24, 3
SHAPE = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "hidden_size": 32}
SHAPE |= {"num_hidden_layers": LAYERS, "num_attention_heads": 4}
SHAPE |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GATED = {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
# Windows shorter than the positions, and capping low enough to matter.
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt_neo": {
        "attention_types": [[["global", "local", "global"], 1]],
        "window_size": 8,
        "num_layers": LAYERS,
    },
    "gpt2": {"n_inner": 80},
    "gpt_neox": {"intermediate_size": 80},
    "llama": GATED,
    "mistral": {**GATED, "sliding_window": 8},
    "qwen2": {**GATED, "use_sliding_window": True, "sliding_window": 8, "layer_types": KINDS},
    "qwen3": {**GATED, "use_sliding_window": True, "sliding_window": 8, "layer_types": KINDS},
    "gemma": GATED,
    "gemma2": {**GATED, "sliding_window": 8, "layer_types": KINDS, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**GATED, "sliding_window": 8, "layer_types": KINDS},
}
PLAIN: dict[str, Callable[[PreTrainedModel], list[torch.nn.Module]]] = {
    "gpt_neo": lambda model: [block.mlp.c_fc for block in model.transformer.h],
    "gpt2": lambda model: [block.mlp.c_fc for block in model.transformer.h],
    "gpt_neox": lambda model: [block.mlp.dense_h_to_4h for block in model.gpt_neox.layers],
}


def build(model_type: str, attention: str | None = None, **config: Any) -> PreTrainedModel:
    """A tiny model of which every weight matters, the same each time."""
    torch.manual_seed(0)
    fields = {**SHAPE, **CONFIGS.get(model_type, {}), **config}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **fields), attn_implementation=attention
    )
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.15 * torch.randn_like(weights)
    return model.eval()  # type: ignore[no-any-return]


def tokens(positions: int = POSITIONS) -> torch.Tensor:
    return torch.randint(VOCABULARY, (5, positions), generator=torch.Generator().manual_seed(1))


def outputs(model: PreTrainedModel, modules: list[torch.nn.Module]) -> list[torch.Tensor]:
    """What plain hooks see on transformers' own pass, the head and all."""
    seen: dict[torch.nn.Module, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda module, _, output: seen.update({module: output}))
        for module in modules
    ]
    with torch.no_grad():
        model(tokens())
    for hook in hooks:
        hook.remove()
    return [seen[module] for module in modules]


def expected(model_type: str) -> list[torch.Tensor]:
    """The MLP neurons of every layer by the eager model."""
    model = build(model_type, "eager")
    if model_type in PLAIN:
        return outputs(model, PLAIN[model_type](model))
    mlps = [block.mlp for block in model.model.layers]
    gates = outputs(model, [mlp.gate_proj for mlp in mlps])
    ups = outputs(model, [mlp.up_proj for mlp in mlps])
    return [mlp.act_fn(gate) * up for mlp, gate, up in zip(mlps, gates, ups, strict=True)]


def test_every_architecture_of_the_table_is_tested() -> None:
    assert set(CONFIGS) == set(ARCHITECTURES)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_capture_is_what_plain_hooks_see_on_the_eager_model(model_type: str) -> None:
    model = build(model_type)
    layers = neoscope.capture(model, tokens())
    truth = expected(model_type)
    assert list(layers) == [f"MLP_{layer}" for layer in range(LAYERS)]
    differences, sizes = [], []  # the largest, and the root mean square of the values, by layer
    for found, value in zip(layers.values(), truth, strict=True):
        assert found.shape == value.shape
        differences.append(float((found - value).abs().max()))
        sizes.append(float(value.square().mean().sqrt()))
        assert differences[-1] <= 1e-4 * sizes[-1]
    point, attention = ARCHITECTURES[model_type], model.config._attn_implementation
    ours = takes_fast_path(model.config.model_type, point, "fast")
    print(
        f"| `{model_type}` | `{point.module}` | {point.side} | {'ours' if ours else attention} "
        f"| {max(d / s for d, s in zip(differences, sizes, strict=True)):.1e} |"
    )


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_plan_knows_its_shape_from_the_configuration_alone(
    model_type: str, tmp_path: Path
) -> None:
    model = build(model_type)
    model.config.save_pretrained(tmp_path)
    shape = model_shape(RunSpec(model=str(tmp_path), layers=(0, 1)))
    captured = neoscope.capture(model, tokens(), layers=[0, 1])
    assert (shape.layers, shape.hidden, shape.heads) == ([0, 1], 32, 4)
    assert {values.shape[2] for values in captured.values()} == {shape.neurons}
    decoder = model.base_model
    kept = [*decoder.parameters(), *decoder.buffers()]
    assert shape.weight_bytes == sum(tensor.nbytes for tensor in kept)


# Other modules, some of the layers


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return build("llama")


def test_a_module_by_its_name_and_either_side_of_it(llama: PreTrainedModel) -> None:
    gates = [block.mlp.gate_proj for block in llama.model.layers]
    truth = outputs(llama, gates)
    found = neoscope.capture(llama, tokens(), hook="model.layers.*.mlp.gate_proj")
    for values, expect in zip(found.values(), truth, strict=True):
        assert torch.equal(values, expect)
    normed = outputs(llama, [block.post_attention_layernorm for block in llama.model.layers])
    found = neoscope.capture(
        llama, tokens(), hook="model.layers.*.mlp.gate_proj", hook_side="input"
    )
    for values, expect in zip(found.values(), normed, strict=True):
        assert torch.equal(values, expect)


def test_an_architecture_that_is_not_in_the_table_goes_by_its_modules() -> None:
    """Also where a module is given all tokens in one row, as OPT's, or its argument by name."""
    opt = build("opt", ffn_dim=48, word_embed_proj_dim=32, do_layer_norm_before=True)
    blocks = opt.model.decoder.layers
    for name in ("fc1", "self_attn_layer_norm"):
        truth = outputs(opt, [getattr(block, name) for block in blocks])
        found = neoscope.capture(opt, tokens(), hook=f"model.decoder.layers.*.{name}")
        for values, expect in zip(found.values(), truth, strict=True):
            torch.testing.assert_close(values, expect.reshape(5, POSITIONS, -1))
    found = neoscope.capture(
        opt, tokens(), hook="model.decoder.layers.*.self_attn", hook_side="input"
    )
    for values, expect in zip(found.values(), truth, strict=True):
        torch.testing.assert_close(values, expect)


def test_a_model_with_its_head_and_without_have_the_same_names(llama: PreTrainedModel) -> None:
    whole, bare = (neoscope.capture(model, tokens()) for model in (llama, llama.model))
    assert all(torch.equal(whole[name], bare[name]) for name in whole)


def test_layers_are_chosen_by_number_and_nothing_after_them_is_computed(
    llama: PreTrainedModel,
) -> None:
    every = neoscope.capture(llama, tokens())
    computed: list[str] = []
    watches = [
        module.register_forward_hook(lambda *_, name=name: computed.append(name))
        for name, module in llama.named_modules()
        if not list(module.children())
    ]
    found = neoscope.capture(llama, tokens(), layers=[1])
    for watch in watches:
        watch.remove()
    assert list(found) == ["MLP_1"]
    assert torch.equal(found["MLP_1"], every["MLP_1"])
    assert {"model.layers.0.mlp.down_proj", "model.layers.1.mlp.up_proj"} <= set(computed)
    after = ("model.layers.1.mlp.down_proj", "model.layers.2", "model.norm", "lm_head")
    assert not [name for name in computed if name.startswith(after)]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_no_cache_is_kept_and_no_head_is_computed(model_type: str) -> None:
    model = build(model_type)
    asked: list[Any] = []
    head = model.get_output_embeddings()
    watches = [
        head.register_forward_hook(lambda *_: asked.append("head")),
        model.base_model.register_forward_pre_hook(
            lambda _module, _inputs, named: asked.append(named["use_cache"]), with_kwargs=True
        ),
    ]
    neoscope.capture(model, tokens(), forward="reference")
    for watch in watches:
        watch.remove()
    assert asked == [False]


def test_gpt_neo_away_from_its_own_hook_point_is_transformers_own_pass() -> None:
    model = build("gpt_neo")
    truth = outputs(model, [block.attn.attention.out_proj for block in model.transformer.h])
    found = neoscope.capture(model, tokens(), hook="transformer.h.*.attn.attention.out_proj")
    for values, expect in zip(found.values(), truth, strict=True):
        torch.testing.assert_close(values, expect)


# What does not fit is said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hook": "layers.*.mlp.down_proj"}, "no module .* near are model.layers.*.mlp.down_proj"),
        ({"hook": "model.layers.*.mlp.down"}, "near are model.layers.*.mlp.down_proj"),
        ({"layers": [0, 3, 7]}, "has no layer 3, 7; it has 0 to 2"),
        ({"hook": "model.layers.*.self_attn"}, r"the output of MLP_0 .* is a tuple for tokens"),
        ({"hook": "model.*.weight"}, "no module is called"),
        (
            {"hook": "model.layers.*.self_attn.rotary", "hook_side": "input"},
            "no module is called",
        ),
    ],
    ids=str,
)
def test_a_hook_that_does_not_fit_is_refused_in_words(
    llama: PreTrainedModel, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        neoscope.capture(llama, tokens(), **options)
    assert not any(module._forward_hooks for module in llama.modules())
    assert not any(module._forward_pre_hooks for module in llama.modules())


def test_values_of_other_dimensions_are_refused() -> None:
    heads = "model.layers.*.self_attn.q_norm"
    with pytest.raises(InputError, match=r"is torch.float32 \[5, 24, 4, 8\] for tokens \[5, 24\]"):
        neoscope.capture(build("qwen3"), tokens(), hook=heads)


@pytest.mark.parametrize("module", ["model.layers.0.mlp.up_proj", "model.*.mlp.*.up_proj"])
def test_a_pattern_has_one_star(llama: PreTrainedModel, module: str) -> None:
    with pytest.raises(UsageError, match="give exactly one"):
        neoscope.capture(llama, tokens(), hook=module)


def test_an_unknown_architecture_asks_for_a_hook() -> None:
    opt = build("opt", ffn_dim=48, word_embed_proj_dim=32)
    with pytest.raises(InputError, match=r"neurons of a opt are: give --hook .* gpt_neo, gpt2"):
        neoscope.capture(opt, tokens())


def test_a_module_that_runs_twice_or_never_is_refused() -> None:
    model = build("llama", num_hidden_layers=4)
    blocks = model.model.layers
    blocks[1].mlp = blocks[0].mlp
    with pytest.raises(InputError, match="MLP_0 .* runs more than once in a pass"):
        neoscope.capture(model, tokens())
    for block in blocks:
        block.idle = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="MLP_0, MLP_1, MLP_2, MLP_3 .* does not run in a pass"):
        neoscope.capture(model, tokens(), hook="model.layers.*.idle")


def test_training_mode_is_refused_where_the_pass_is_transformers_own() -> None:
    with pytest.raises(InputError, match=r"training mode.*call model.eval\(\)"):
        neoscope.capture(build("gpt2").train(), tokens())


@pytest.mark.parametrize("thing", [torch.nn.Linear(2, 2), "gpt2"], ids=["module", "name"])
def test_what_is_no_model_of_transformers_is_refused(thing: Any) -> None:
    with pytest.raises(InputError, match="a model of transformers is needed, not a"):
        neoscope.capture(thing, tokens())


def test_layers_of_different_sizes_are_a_dictionary_but_no_run() -> None:
    model = build("gpt2")
    mlp = model.transformer.h[1].mlp
    mlp.c_fc = transformers.pytorch_utils.Conv1D(60, 32)
    mlp.c_proj = transformers.pytorch_utils.Conv1D(32, 60)
    found = neoscope.capture(model, tokens())
    assert [values.shape[2] for values in found.values()] == [80, 60, 80]
    point = ARCHITECTURES["gpt2"]
    with pytest.raises(InputError, match=r"\(MLP_0 80, MLP_1 60, MLP_2 80\).*with --layers"):
        _neurons(RunSpec(), model, point)
    assert _neurons(RunSpec(layers=(0, 2)), model, point) == 80


def test_consumers_get_what_capture_gives(llama: PreTrainedModel) -> None:
    seen: list[str] = []
    stream(llama, tokens(), [lambda name, _: seen.append(name)], forward="fast")
    assert seen == ["MLP_0", "MLP_1", "MLP_2"]
