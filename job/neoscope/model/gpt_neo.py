"""The fast exact forward pass of GPT-Neo, up to its last `mlp.c_fc` and no further.

In: a GPT-Neo, transformers' or bare, and token ids. Out: nothing but the calls of each block's `mlp.c_fc`, on
which the caller has put ordinary torch forward hooks. It does not know who listens, where weights
come from or where layers go. It knows one architecture and refuses what it would get wrong.
Percentages are of the whole pass: 125M shape, [16, 512] tokens, float32, 2 AVX-512 cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import gelu, scaled_dot_product_attention

if TYPE_CHECKING:
    from transformers import GPTNeoForCausalLM, GPTNeoModel
    from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoBlock

    from neoscope.model.bare_gpt_neo import BareGPTNeo
from neoscope.errors import InputError
from neoscope.model.shapes import CPU_SEQUENCES


def forward(model: GPTNeoForCausalLM | GPTNeoModel | BareGPTNeo, token_ids: torch.Tensor) -> None:
    """Run int64 `token_ids` [sequence, position] through all layers, for its hooks.

    Each `block.mlp.c_fc` is called as a module, once, in order, on all of [sequence, position,
    hidden], and forward hooks on it see its output [sequence, position, neuron], before GELU.

    **A hook that wants to keep that output copies it before it returns**: all layers share one
    buffer (on a GPU the copy must be one that the current stream waits for). What a hook returns
    instead is used instead. Hooks on other modules may not fire. Nothing is computed after the last
    `c_fc`; a hook that raises ends the pass before.

    The model is left as it was. One call at a time for a model. Raises InputError for a model that it
    would get wrong.
    """
    transformer: GPTNeoModel = getattr(model, "transformer", model)
    _refuse_what_would_be_wrong(transformer, token_ids)

    with torch.no_grad():
        positions = token_ids.shape[1]
        hidden = transformer.wte(token_ids) + transformer.wpe.weight[:positions]
        window = transformer.config.window_size
        mask = _window_mask(window, hidden.device) if positions > window else None
        neurons = hidden.new_empty(*token_ids.shape, transformer.h[0].mlp.c_fc.out_features)
        for block in transformer.h:
            _add_attention(block, hidden, mask if block.attn.attention_type == "local" else None)
            with _output_in(neurons, block.mlp.c_fc):
                activations = block.mlp.c_fc(block.ln_2(hidden))
            if block is not transformer.h[-1]:
                _add_projection(block.mlp.c_proj, activations, hidden)


def _refuse_what_would_be_wrong(transformer: GPTNeoModel, token_ids: torch.Tensor) -> None:
    config = transformer.config
    if config.activation_function != "gelu_new":
        raise InputError(
            f"the fast forward knows only the activation 'gelu_new', and this model has "
            f"{config.activation_function!r}: use --forward reference"
        )
    dropout = max(config.embed_dropout, config.attention_dropout, config.resid_dropout)
    if transformer.training and dropout > 0:
        raise InputError(f"the model is in training mode with dropout {dropout}: call model.eval()")
    if token_ids.ndim != 2 or not 1 <= token_ids.shape[1] <= config.max_position_embeddings:
        raise InputError(
            f"token ids must be [sequence, position] with 1 to {config.max_position_embeddings} "
            f"positions, and are {list(token_ids.shape)}"
        )
    # `_output_in` stands in for the forward of a plain Linear: quantised, adapted or offloaded ones
    # compute something else, and so does one that a second call at the same time stands in for.
    for layer, block in enumerate(transformer.h):
        c_fc = block.mlp.c_fc
        if type(c_fc) is not torch.nn.Linear or "forward" in vars(c_fc):
            raise InputError(
                f"h.{layer}.mlp.c_fc is not a plain torch.nn.Linear but a "
                f"{type(c_fc).__qualname__}, or its forward is replaced: the fast forward knows "
                f"nothing else, use --forward reference"
            )


def _window_mask(window: int, device: torch.device) -> torch.Tensor:
    """Which of two windows of keys each query of the second window sees: bool [query, key]."""
    query = torch.arange(window, device=device)[:, None]
    key = torch.arange(2 * window, device=device)
    return (query < key) & (key <= query + window)


def _add_attention(block: GPTNeoBlock, hidden: torch.Tensor, mask: torch.Tensor | None) -> None:
    """Add a block's attention to `hidden` [sequence, position, hidden], in place."""
    attention = block.attn.attention
    for rows in _blocks(hidden):
        normed = block.ln_1(rows)
        # Joining the three weights for one product gained less than 1 %.
        query, key, value = (
            project(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        seen = _attend(query, key, value, mask).transpose(1, 2).flatten(2)
        rows += attention.out_proj(seen)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Unscaled causal attention over [sequence, head, position, feature], windowed if masked.

    A window of queries sees two windows of keys at most, so one small mask serves every layer and
    length, and the work grows with the positions, not their square (512 positions: 2 % faster than
    under a full mask). Scores and softmax are float32 inside the kernel for reduced precision too,
    as in transformers.
    """
    if mask is None:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)
    window, positions = mask.shape[0], query.shape[2]
    first = slice(0, window)
    parts = [_attend(query[:, :, first], key[:, :, first], value[:, :, first], None)]
    for start in range(window, positions, window):
        queries, keys = slice(start, start + window), slice(start - window, start + window)
        here = mask[: positions - start, : positions - start + window]
        parts.append(
            scaled_dot_product_attention(
                query[:, :, queries], key[:, :, keys], value[:, :, keys], attn_mask=here, scale=1.0
            )
        )
    return torch.cat(parts, dim=2)


def _add_projection(
    c_proj: torch.nn.Linear, activations: torch.Tensor, hidden: torch.Tensor
) -> None:
    """Add the rest of a block's MLP to `hidden` [sequence, position, hidden], in place."""
    for rows, activated in zip(_blocks(hidden), _blocks(activations), strict=True):
        rows += c_proj(gelu(activated, approximate="tanh"))


def _blocks(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Views of [sequence, ...] that are worth computing one after another."""
    return tensor.split(CPU_SEQUENCES) if tensor.device.type == "cpu" else (tensor,)


@contextmanager
def _output_in(out: torch.Tensor, c_fc: torch.nn.Linear) -> Iterator[None]:
    """Let calls of `c_fc` leave their output in `out` [sequence, position, neuron].

    torch.nn.Linear allocates it, and 100 MB fresh from the system every layer cost 2 to 4 % in
    page faults. Only `forward` is replaced, so the module is called as ever and its hooks fire.
    """

    def forward(x: torch.Tensor) -> torch.Tensor:
        torch.addmm(c_fc.bias, x.flatten(0, 1), c_fc.weight.t(), out=out.flatten(0, 1))
        return out

    c_fc.forward = forward  # type: ignore[assignment]
    try:
        yield
    finally:
        del c_fc.forward
