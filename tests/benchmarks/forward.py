"""Forward pass with capture of all twelve `mlp.c_fc` of GPT-Neo 125M for 16 x 512 tokens.

    python tests/benchmarks/forward.py [ROUNDS]

Ours against the floor (the same matrix products alone, into memory that is already there), and
against transformers with hooks, nnsight and TransformerLens, all in one process, with the same
random weights but for TransformerLens, which draws its own: without the Hub it takes none.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import torch
from measure import in_turn, table
from transformers import GPTNeoForCausalLM

from neoscope import load_model
from neoscope.model.hooks import capture, stream

SEQUENCES, POSITIONS, LAYERS, HIDDEN, HEADS = 16, 512, 12, 768, 12


def floor() -> Callable[[], None]:
    """Every matrix product up to the last `c_fc`, attention's two included."""
    tokens, head = SEQUENCES * POSITIONS, HIDDEN // HEADS
    x = torch.randn(tokens, HIDDEN)
    inner = torch.randn(tokens, 4 * HIDDEN)
    maps = {n: torch.randn(HIDDEN, n) for n in (HIDDEN, 3 * HIDDEN, 4 * HIDDEN)}
    outs = {n: torch.empty(tokens, n) for n in maps}
    down, narrow = torch.randn(4 * HIDDEN, HIDDEN), torch.empty(tokens, HIDDEN)
    q = torch.randn(SEQUENCES * HEADS, POSITIONS, head)
    scores = torch.empty(SEQUENCES * HEADS, POSITIONS, POSITIONS)
    mixed = torch.empty_like(q)

    def products() -> None:
        for layer in range(LAYERS):
            torch.mm(x, maps[3 * HIDDEN], out=outs[3 * HIDDEN])
            torch.bmm(q, q.transpose(1, 2), out=scores)
            torch.bmm(scores, q, out=mixed)
            torch.mm(x, maps[HIDDEN], out=outs[HIDDEN])
            torch.mm(x, maps[4 * HIDDEN], out=outs[4 * HIDDEN])
            if layer < LAYERS - 1:
                torch.mm(inner, down, out=narrow)

    return products


def transformers_hooks(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    layers: dict[str, torch.Tensor] = {}
    hooks = [
        block.mlp.c_fc.register_forward_hook(
            lambda _module, _inputs, output, name=f"MLP_{i}": layers.__setitem__(name, output)
        )
        for i, block in enumerate(model.transformer.h)
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    return layers


def nnsight_trace(model: torch.nn.Module) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    from nnsight import NNsight

    wrapped = NNsight(copy.deepcopy(model))  # it replaces the forward of every module

    def trace(ids: torch.Tensor) -> dict[str, torch.Tensor]:
        layers: dict[str, torch.Tensor] = {}
        with wrapped.trace(ids):
            for i in range(LAYERS):
                layers[f"MLP_{i}"] = wrapped.transformer.h[i].mlp.c_fc.output.save()
        return layers

    return trace


def transformer_lens() -> Callable[[torch.Tensor], object]:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=LAYERS,
        d_model=HIDDEN,
        n_heads=HEADS,
        d_head=HIDDEN // HEADS,
        d_mlp=4 * HIDDEN,
        d_vocab=50257,
        n_ctx=2048,
        act_fn="gelu_new",
        attn_scale=1.0,
        use_local_attn=True,
        window_size=256,
        attn_types=["global", "local"] * 6,
        normalization_type="LN",
        device="cpu",
    )
    hooked = HookedTransformer(config)

    def run(ids: torch.Tensor) -> object:
        wanted = "mlp.hook_pre"
        return hooked.run_with_cache(
            ids, stop_at_layer=LAYERS, names_filter=lambda name: name.endswith(wanted)
        )[1]

    return run


def main(rounds: int) -> None:
    torch.set_grad_enabled(False)
    model = load_model("gpt-neo-125m", weights="random", device="cpu")
    with torch.device("meta"):
        whole = GPTNeoForCausalLM(model.config)  # with the head, which the peers compute
    whole.transformer = model
    whole.tie_weights()
    ids = torch.randint(0, 50257, (SEQUENCES, POSITIONS), generator=torch.manual_seed(0))
    rows: dict[str, Callable[[], object]] = {
        "the matrix products alone": floor(),
        "neoscope, layers streamed to a consumer": lambda: stream(
            model, ids, [lambda _name, _values: None], forward="fast"
        ),
        "neoscope.capture, all layers kept": lambda: capture(model, ids),
        "transformers with hooks": lambda: transformers_hooks(whole, ids),
    }
    try:
        trace, lens = nnsight_trace(whole), transformer_lens()
    except ImportError as error:
        print(f"without nnsight and TransformerLens ({error}): make bench has them")
    else:
        rows["nnsight trace"] = lambda: trace(ids)
        rows["TransformerLens run_with_cache, stop_at_layer"] = lambda: lens(ids)
    seconds = in_turn(rows, rounds)
    title = "Forward pass with capture, 16 x 512 tokens, GPT-Neo 125M shape, float32"
    print(table(title, seconds, "the matrix products alone"))
    print(table("The same", seconds, "neoscope, layers streamed to a consumer"))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
