"""One forward pass with a hook on every layer's MLP neurons.

In: a decoder of transformers and token ids. Out: each layer's values as it appears, given to
consumers from inside the hook, or all of them as a dictionary. It does not know what consumers do,
nor which architectures there are.

Where a hook is on the output of a module, other consumers may take its input beside it, in the same way.

Consumers are called with a layer's name and its values [sequence, position, neuron], once a layer and
a pass, in the order in which the layers are computed, on the model's device and in its dtype. The
values are a consumer's only until it returns: the pass may write over them after that, so it copies
what it keeps, and changes nothing. They are of the sequences of this pass and no others: whoever
divides a batch into several passes calls `stream` once for each, with consumers that know its offset
in the batch. What a consumer raises ends the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neoscope.model.bare_gpt_neo import BareGPTNeo
from neoscope.argument_checks import check_choice, check_layers
from neoscope.errors import InputError
from neoscope.model import gpt_neo, numerics
from neoscope.model.architectures import ARCHITECTURES, HookPoint, hook_point, numbers_of
from neoscope.spec import FORWARDS, LAYER, Forward, Side

Consumer = Callable[[str, torch.Tensor], None]
OTHER_HOOK = "give another --hook, or the --layers where it does"


def capture(
    model: PreTrainedModel,
    token_ids: Any,
    *,
    hook: str | None = None,
    hook_side: Side | None = None,
    layers: Sequence[int] | None = None,
    forward: Forward = "fast",
) -> dict[str, torch.Tensor]:
    """What every MLP neuron of every layer does: for GPT-Neo what it is given, before GELU.

    `model` is any decoder of transformers in eval mode, with or without its head, and `token_ids`
    are integers [sequence, position]. The result is `{"MLP_0": [sequence, position, neuron], ...}`
    on the model's device, in the model's dtype: for 16 x 512 tokens of GPT-Neo 125M twelve arrays
    [16, 512, 3072], 1.2 GB in float32.

    `hook` names other modules than the architecture's own, such as `model.layers.*.mlp.gate_proj`,
    `hook_side` which side of them (`output` if not given, or `input`), `layers` some of the layers.
    `forward` is `fast`, ours where there is one, or `reference`, transformers' own with the attention
    that the model was loaded with. float32 is IEEE float32 in the pass, whatever torch's settings say
    before and after it. Raises InputError for what there is not, or does not fit the model, UsageError
    where a variable of the environment changes the arithmetic.
    """
    check_choice("forward", forward, FORWARDS)
    layers = None if layers is None else check_layers(layers)
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, values: torch.Tensor) -> None:
        found[name] = values.clone()

    point = hook_point(_model_type(model), hook, hook_side)
    stream(model, token_ids, [keep], point=point, layers=layers, forward=forward)
    return found


def stream(
    model: PreTrainedModel | BareGPTNeo,
    token_ids: Any,
    consumers: Sequence[Consumer],
    *,
    forward: str,
    point: HookPoint | None = None,
    layers: Sequence[int] | None = None,
    inputs: Sequence[Consumer] = (),
) -> None:
    """Run the model once and give each layer to every consumer as it appears.

    `point` is by default the architecture's own, `layers` all. `inputs` are consumers of what a module is
    given [sequence, position, input] whose output the layer is. Nothing after the last hook point is
    computed.
    """
    point = point or hook_point(_model_type(model), None, None)
    ids = _checked(model, token_ids)
    modules = hook_points(model, point, layers)
    waiting = set(modules)

    def take(name: str, values: Any, given: Any = None) -> None:
        if name not in waiting:
            raise InputError(
                f"{name} ({point.module}) runs more than once in a pass: give another --hook"
            )
        values = _by_token(f"the {point.side} of {name} ({point.module})", values, ids)
        for consume in inputs:
            what = f"the input of {name} ({point.module})"
            consume(name, _by_token(what, given, ids))
        for consume in consumers:
            consume(name, values)
        waiting.discard(name)
        if not waiting:
            raise _Finished

    hooks = [_hook(module, point.side, name, take) for name, module in modules.items()]
    try:
        with torch.no_grad(), numerics.pinned(ids.device):
            if takes_fast_path(_model_type(model), point, forward):
                gpt_neo.forward(model, ids)
            else:
                _transformers_forward(model, ids)
    except _Finished:
        return
    finally:
        for hook in hooks:
            hook.remove()
    raise InputError(
        f"{', '.join(sorted(waiting))} ({point.module}) does not run in a pass: {OTHER_HOOK}"
    )


def takes_fast_path(model_type: str, point: HookPoint, forward: str) -> bool:
    """Whether the pass of an architecture is ours and not transformers'."""
    return forward == "fast" and model_type == "gpt_neo" and point == ARCHITECTURES["gpt_neo"]


def hook_points(
    model: PreTrainedModel | BareGPTNeo, point: HookPoint, layers: Sequence[int] | None = None
) -> dict[str, torch.nn.Module]:
    """The module of every layer by the layer's name, ascending: `MLP_0` and on.

    Raises InputError where no module matches, or a layer is not there.
    """
    numbers, named = layer_numbers(model, point, layers), _named_modules(model)
    return {f"{LAYER}{number}": named[point.module_of(number)] for number in numbers}


def linear_maps(
    model: PreTrainedModel | BareGPTNeo, point: HookPoint, layers: Sequence[int] | None = None
) -> dict[str, torch.nn.Linear]:
    """The modules of `hook_points`, where each is a plain linear map whose outputs are captured, and fewer
    numbers go in than come out, so that the inputs say the same in fewer; none elsewhere."""
    maps = {
        name: module
        for name, module in hook_points(model, point, layers).items()
        # A quantised, adapted or offloaded one computes something else than its weight says.
        if type(module) is torch.nn.Linear and "forward" not in vars(module)
    }
    if point.side != "output" or len(maps) < len(layer_numbers(model, point, layers)):
        return {}
    fewer = all(module.in_features < module.out_features for module in maps.values())
    return maps if fewer else {}


def layer_numbers(
    model: PreTrainedModel | BareGPTNeo, point: HookPoint, layers: Sequence[int] | None = None
) -> list[int]:
    """The numbers of the layers, ascending; see `hook_points`."""
    return numbers_of(_named_modules(model), point, layers)


def neuron_counts(
    model: PreTrainedModel | BareGPTNeo,
    point: HookPoint,
    layers: Sequence[int] | None,
    forward: str,
) -> dict[str, int]:
    """How many neurons each layer has there, seen in a pass over one token."""
    counts: dict[str, int] = {}

    def count(name: str, values: torch.Tensor) -> None:
        counts[name] = values.shape[2]

    stream(model, [[0]], [count], point=point, layers=layers, forward=forward)
    return counts


class _Finished(Exception):
    """The last hook point has been reached: nothing after it is wanted."""


def _hook(
    module: torch.nn.Module, side: Side, name: str, take: Callable[..., None]
) -> torch.utils.hooks.RemovableHandle:
    if side == "output":
        return module.register_forward_hook(
            lambda _module, inputs, named, output: take(
                name, output, [*inputs, *named.values(), None][0]
            ),
            with_kwargs=True,
        )
    return module.register_forward_pre_hook(
        lambda _module, inputs, named: take(name, [*inputs, *named.values(), None][0]),
        with_kwargs=True,
    )


def _transformers_forward(model: PreTrainedModel, ids: torch.Tensor) -> None:
    if model.training:
        raise InputError("the model is in training mode, which may drop values: call model.eval()")
    model.base_model(input_ids=ids, use_cache=False)  # which has no head


def _model_type(model: PreTrainedModel | BareGPTNeo) -> str:
    """What transformers calls the model's architecture."""
    # Not by its class, to import which takes seconds that a run need not wait.
    if not hasattr(model, "base_model_prefix"):
        raise InputError(f"a model of transformers is needed, not a {type(model).__qualname__}")
    return str(model.config.model_type)


def _named_modules(model: PreTrainedModel | BareGPTNeo) -> dict[str, torch.nn.Module]:
    """The modules of the decoder, by the names that they have in the model with its head."""
    prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
    return {prefix + name: module for name, module in model.base_model.named_modules() if name}


def _by_token(what: str, values: Any, ids: torch.Tensor) -> torch.Tensor:
    """Values as [sequence, position, neuron], also where all tokens stand in one row, as in OPT."""
    if not isinstance(values, torch.Tensor):
        found = f"a {type(values).__name__}"
    elif values.is_floating_point() and values.dim() == 3 and values.shape[:2] == ids.shape:
        return values
    elif values.is_floating_point() and values.dim() == 2 and values.shape[0] == ids.numel():
        return values.reshape(*ids.shape, -1)
    else:
        found = f"{values.dtype} {list(values.shape)}"
    raise InputError(
        f"{what} is {found} for tokens {list(ids.shape)}, and must be one tensor of numbers "
        "[sequence, position, neuron]: give another --hook"
    )


def _checked(model: PreTrainedModel | BareGPTNeo, token_ids: npt.ArrayLike) -> torch.Tensor:
    """Token ids as the model takes them, or an error that says what does not fit."""
    try:
        ids = (
            token_ids
            if isinstance(token_ids, torch.Tensor)
            else torch.tensor(np.asarray(token_ids))
        )
    except (TypeError, ValueError) as error:  # ragged lists, words
        raise InputError(f"token ids must be integers [sequence, position]: {error}") from None
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if ids.dim() != 2 or ids.numel() == 0 or not whole:
        raise InputError(
            f"token ids must be integers [sequence, position], not {ids.dtype} {list(ids.shape)}"
        )
    ids = ids.to(torch.int64)  # torch finds no extremes of uint16 and uint32
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)  # None: there is no such limit
    if longest is not None and ids.shape[1] > longest:
        raise InputError(
            f"sequences of {ids.shape[1]} positions are longer than the model's "
            f"{longest}: lower --positions"
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= config.vocab_size:
        raise InputError(
            f"token id {low if low < 0 else high} is not in the model's vocabulary of "
            f"{config.vocab_size}: the tokenizer does not fit the model"
        )
    return ids.to(model.device)
