"""The fast forward against transformers' eager one, and both against GPT-Neo in plain float64.

The float64 reference is written here because transformers' own casts queries and keys to float32
whatever the model's precision. An error is the root mean square over a layer's whole c_fc output.
Everything about accuracy runs on every device this machine has.
"""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from neoscope.errors import InputError
from neoscope.model import gpt_neo

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SMALL = {"hidden_size": 64, "num_heads": 4, "window_size": 16, "max_position_embeddings": 64}
WIDE = {"hidden_size": 128, "num_heads": 2, "window_size": 256, "max_position_embeddings": 512}
# Shorter than the window, as long, longer by one, by several and a part, by whole windows. Short
# ones have many sequences: errors of a handful of numbers are luck.
CASES = [(SMALL, ids) for ids in [(1, 1), (32, 1), (16, 8), (16, 16), (5, 17), (3, 40), (6, 64)]]
CASES += [(WIDE, ids) for ids in [(2, 300), (1, 512), (1, 257)]]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Products this small only wait for each other's threads: five times slower on busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def case_name(value: object) -> str | None:
    if isinstance(value, dict):
        return f"window{value['window_size']}"
    return "x".join(map(str, value)) if isinstance(value, tuple) else None


cases = pytest.mark.parametrize(("shape", "ids_shape"), CASES, ids=case_name)
devices = pytest.mark.parametrize("device", DEVICES)


def build(shape: dict[str, int], *, qk_scale: float = 1.0, **config: object) -> GPTNeoForCausalLM:
    """Four layers at transformers' initial scale, with biases and layer norms that matter."""
    torch.manual_seed(0)
    kinds = {"attention_types": [[["global", "local"], 2]], "vocab_size": 101, "num_layers": 4}
    kinds |= {"bos_token_id": None, "eos_token_id": None}
    model = GPTNeoForCausalLM(GPTNeoConfig(**(kinds | shape | config))).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim == 1:
                weights += 0.02 * torch.randn_like(weights)
            if "q_proj" in name or "k_proj" in name:
                weights *= qk_scale
    return model


def tokens(sequences: int, positions: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(101, (sequences, positions), generator=generator)


Hook = Callable[[torch.nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor | None]


def run_hooked(model: GPTNeoForCausalLM, hook: Hook, run: Callable[[], object]) -> None:
    handles = [block.mlp.c_fc.register_forward_hook(hook) for block in model.transformer.h]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()


def copies(model: GPTNeoForCausalLM, run: Callable[[], object]) -> list[torch.Tensor]:
    """Each layer's c_fc output [sequence, position, neuron], copied inside the hook."""
    seen: list[torch.Tensor] = []
    run_hooked(model, lambda _, __, out: seen.append(out.detach().clone()), run)
    return seen


def fast(model: GPTNeoForCausalLM, ids: torch.Tensor) -> list[torch.Tensor]:
    return copies(model, lambda: gpt_neo.forward(model, ids))


def eager(model: GPTNeoForCausalLM, ids: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return copies(model, lambda: model(ids))


@torch.no_grad()
def reference(model: GPTNeoForCausalLM, ids: torch.Tensor) -> list[torch.Tensor]:
    """GPT-Neo as it is defined, in float64."""
    config = model.config
    transformer = copy.deepcopy(model.transformer).double()
    positions = torch.arange(ids.shape[1], device=ids.device)
    back = positions[:, None] - positions
    hidden = transformer.wte(ids) + transformer.wpe(positions)
    layers = []
    for block, kind in zip(transformer.h, config.attention_layers, strict=True):
        attention, x = block.attn.attention, block.ln_1(hidden)
        query, key, value = (
            project(x).unflatten(-1, (config.num_heads, -1)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        seen = (back >= 0) & (back < (config.window_size if kind == "local" else math.inf))
        weights = (query @ key.mT).masked_fill(~seen, -math.inf).softmax(-1)
        hidden = hidden + attention.out_proj((weights @ value).transpose(1, 2).flatten(2))
        x = block.mlp.c_fc(block.ln_2(hidden))
        layers.append(x)
        gelu = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        hidden = hidden + block.mlp.c_proj(gelu)
    return layers


def errors(layers: list[torch.Tensor], exact: list[torch.Tensor]) -> list[float]:
    pairs = zip(layers, exact, strict=True)
    return [(layer.double() - truth).square().mean().sqrt().item() for layer, truth in pairs]


@devices
@cases
def test_agrees_with_transformers_at_initial_scale(shape, ids_shape, device):
    model, ids = build(shape).to(device), tokens(*ids_shape).to(device)
    for ours, theirs in zip(fast(model, ids), eager(model, ids), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("qk_scale", [1, 10, 30])
@cases
def test_every_layer_is_as_near_the_truth_as_eager(shape, ids_shape, qk_scale, dtype, device):
    model = build(shape, qk_scale=qk_scale).to(device, dtype)
    ids = tokens(*ids_shape).to(device)
    exact = reference(model, ids)
    ours, theirs = errors(fast(model, ids), exact), errors(eager(model, ids), exact)
    for layer in range(4):
        assert ours[layer] <= 1.5 * theirs[layer], f"layer {layer} of {ours} against {theirs}"


@pytest.mark.parametrize("kind", ["global", "local"])
def test_layers_may_be_all_of_one_kind(kind):
    model, ids = build(SMALL, attention_types=[[[kind], 4]], qk_scale=10), tokens(3, 40)
    exact = reference(model, ids)
    ours, theirs = errors(fast(model, ids), exact), errors(eager(model, ids), exact)
    assert all(our <= 1.5 * their for our, their in zip(ours, theirs, strict=True))


def test_takes_the_base_model_and_other_neuron_counts():
    model, ids = build(SMALL, intermediate_size=96), tokens(2, 20)
    layers = copies(model, lambda: gpt_neo.forward(model.transformer, ids))
    assert [layer.shape for layer in layers] == [(2, 20, 96)] * 4
    for ours, theirs in zip(layers, eager(model, ids), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


class Operations(TorchDispatchMode):
    """Names of the operations that ran, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operations(model: GPTNeoForCausalLM, ids: torch.Tensor) -> list[str]:
    with Operations() as mode:
        run_hooked(
            model,
            lambda *_: mode.names.append("hook"),
            lambda: gpt_neo.forward(model, ids),
        )
    return mode.names


def test_hooks_fire_once_a_layer_and_nothing_runs_after_the_last():
    names = operations(build(SMALL), tokens(5, 40))
    assert names.count("hook") == 4
    assert names[-1] == "hook"


def test_the_window_mask_is_made_once_and_only_where_it_is_needed():
    model = build(SMALL, attention_types=[[["local"], 4]])
    for positions, masks in [(16, 0), (17, 1), (64, 1)]:
        names = operations(model, tokens(2, positions))
        assert sum("bitwise_and" in name for name in names) == masks


def test_layers_share_one_output_buffer():
    places: list[int] = []
    model = build(SMALL)
    run_hooked(
        model,
        lambda _, __, out: places.append(out.data_ptr()),
        lambda: gpt_neo.forward(model, tokens(2, 40)),
    )
    assert len(places) == 4
    assert len(set(places)) == 1


def test_what_a_hook_returns_is_used_instead():
    model, ids = build(SMALL), tokens(3, 40)

    def halving(run: Callable[[], object]) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []

        def hook(_, __, out):
            seen.append(out.detach().clone())
            return out / 2

        run_hooked(model, hook, run)
        return seen

    ours = halving(lambda: gpt_neo.forward(model, ids))
    theirs = halving(lambda: model(ids))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=0)


def test_a_hook_that_fails_leaves_the_model_as_it_was():
    model, ids = build(SMALL), tokens(2, 40)
    before = eager(model, ids)

    def hook(*_):
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        run_hooked(model, hook, lambda: gpt_neo.forward(model, ids))
    for layer, again in zip(before, eager(model, ids), strict=True):
        assert torch.equal(layer, again)


def test_the_model_is_left_as_it_was():
    model, ids = build(SMALL), tokens(3, 40)
    before, weights = model(ids).logits, copy.deepcopy(model.state_dict())
    places = [weight.data_ptr() for weight in model.parameters()]
    gpt_neo.forward(model, ids)
    assert torch.equal(model(ids).logits, before)
    assert [weight.data_ptr() for weight in model.parameters()] == places
    assert all(torch.equal(weights[name], now) for name, now in model.state_dict().items())


def test_a_model_can_be_trained_after_a_forward_in_inference_mode():
    model, ids = build(SMALL), tokens(2, 20)
    with torch.inference_mode():
        gpt_neo.forward(model, ids)
    model(ids, labels=ids).loss.backward()
    assert model.transformer.h[0].attn.attention.k_proj.weight.grad.abs().max() > 0


def test_refuses_another_activation():
    with pytest.raises(InputError, match=r"'gelu_new'.*'gelu'"):
        gpt_neo.forward(build(SMALL, activation_function="gelu"), tokens(1, 4))


@pytest.mark.parametrize("kind", ["embed_dropout", "attention_dropout", "resid_dropout"])
def test_refuses_dropout_in_training_mode_only(kind):
    model = build(SMALL, **{kind: 0.1})
    gpt_neo.forward(model, tokens(1, 4))
    with pytest.raises(InputError, match=r"dropout 0\.1.*model\.eval"):
        gpt_neo.forward(model.train(), tokens(1, 4))
    gpt_neo.forward(build(SMALL).train(), tokens(1, 4))


@pytest.mark.parametrize("ids_shape", [(2, 65), (2, 0), (4,)])
def test_refuses_token_ids_that_do_not_fit(ids_shape):
    with pytest.raises(InputError, match="with 1 to 64 positions, and are"):
        gpt_neo.forward(build(SMALL), torch.zeros(ids_shape, dtype=torch.int64))


class Adapted(torch.nn.Linear):
    """What an adapter or a quantised layer is: a Linear with a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def adapt(model: GPTNeoForCausalLM, path: str) -> None:
    plain = model.get_submodule(path)
    adapted = Adapted(plain.in_features, plain.out_features, bias=plain.bias is not None)
    adapted.load_state_dict(plain.state_dict())
    model.set_submodule(path, adapted)


def test_refuses_another_c_fc():
    model, replaced = build(SMALL), build(SMALL)
    adapt(model, "transformer.h.2.mlp.c_fc")
    with pytest.raises(InputError, match=r"h\.2\.mlp\.c_fc is not a plain .*Adapted"):
        gpt_neo.forward(model, tokens(1, 4))
    c_fc = replaced.transformer.h[1].mlp.c_fc
    c_fc.forward = lambda x: torch.nn.functional.linear(x, c_fc.weight)
    with pytest.raises(InputError, match=r"h\.1\.mlp\.c_fc .*replaced"):
        gpt_neo.forward(replaced, tokens(1, 4))


@pytest.mark.parametrize("name", ["attn.attention.q_proj", "attn.attention.out_proj", "mlp.c_proj"])
def test_other_projections_may_be_of_any_class(name):
    model, ids = build(SMALL), tokens(3, 40)
    adapt(model, f"transformer.h.1.{name}")
    for ours, theirs in zip(fast(model, ids), eager(model, ids), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
