"""Model and tokenizer into the Hub's cache on this disk, so that a run after it finds them there.

In: what a run is told of them. Out: the cache, filled, and where each was found. They are fetched by
loading them as a run does: nothing that it needs is left out, and what it could not load is refused
here. It does not know the text or the storage.
"""

from __future__ import annotations

from typing import Any

import torch

from neoscope.model.loading import find_model, load
from neoscope.spec import make_spec
from neoscope.text.tokenizer import load_tokenizer


def fetch(options: dict[str, Any]) -> list[str]:
    """Fetch model and tokenizer; a line of each for the user.

    `options` are the fields of `RunSpec` that name them, None where not given. Raises UsageError for
    what does not fit together, InputError for what cannot be loaded, UnavailableError without a Hub.
    """
    spec = make_spec(**options)
    tokenizer = load_tokenizer(
        spec.tokenizer,
        revision=None if spec.tokenizer else spec.model_revision,
        model=spec.model,
        weights=spec.weights,
    )
    found = find_model(spec.model, revision=spec.model_revision, weights=spec.weights)
    model = load(found, seed=0, precision=spec.precision, device=torch.device("cpu"))
    return [
        _found("tokenizer", tokenizer.name, tokenizer.revision),
        _found("model", spec.model, model.revision),
    ]


def _found(what: str, name: str, revision: str | None) -> str:
    where = f"commit {revision}" if revision else "needs no Hub"
    return f"{what} {name}: {where}"
