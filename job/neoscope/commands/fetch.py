"""Model and tokenizer, and the text if asked for, into the Hub's cache, for a run without the Hub.

In: what a run is told of them. Out: the cache, filled, and where each was found. A run brings its files
there in the same way before it loads them; here nothing is loaded, and neither torch nor transformers
imported. It does not know the storage.
"""

from __future__ import annotations

from typing import Any

from neoscope.extra import require_run
from neoscope.spec import make_spec


def fetch(options: dict[str, Any], *, text: bool) -> list[str]:
    """Fetch model and tokenizer, and the `text`; a line of each for the user, and one of each file of text.

    `options` are the fields of `RunSpec` that name them, None where not given. Raises UsageError for
    what does not fit together, InputError for what there is not, UnavailableError without a Hub.
    """
    require_run("neoscope fetch")
    from neoscope.model.files import fetch_weights, find_files
    from neoscope.text.data_set import fetch_text
    from neoscope.text.documents import resolve
    from neoscope.text.tokenizer_files import find_tokenizer

    spec = make_spec(**options)
    name, tokenizer = find_tokenizer(
        spec.tokenizer,
        revision=None if spec.tokenizer else spec.model_revision,
        model=spec.model,
        weights=spec.weights,
    )
    model = find_files(spec.model, revision=spec.model_revision, weights=spec.weights)
    if spec.weights == "pretrained":
        fetch_weights(spec.model, model)
    said = [
        _found("tokenizer", name, tokenizer.commit),
        _found("model", spec.model, model.commit),
    ]
    if text:
        described = resolve(spec, [])
        if described["source"] == "dataset":
            files = fetch_text(described, spec.partitions, spec.batches * spec.tokens_per_batch)
        else:
            files = {}
        said.append(_found("text", str(spec.dataset), described.get("revision")))
        said += [f"    {file}: {size / 1e6:,.1f} MB" for file, size in files.items()]
    return said


def _found(what: str, name: str, revision: str | None) -> str:
    where = f"commit {revision}" if revision else "needs no Hub"
    return f"{what} {name}: {where}"
