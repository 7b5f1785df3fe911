"""The files of a tokenizer: where they are, brought into the Hub's cache.

In: what a run is told of tokenizer and model. Out: name and repository, with its files in the cache. A run
loads what is there then, and `neoscope fetch` leaves it there: transformers is not imported.
"""

from __future__ import annotations

from neoscope import hub
from neoscope.spec import GPT_NEO_MODELS, full_name

PACKAGED = "gpt2 (packaged)"
# Vocabularies, merges, templates and settings, whatever they are called; in folders lie other things.
ENDINGS = (".json", ".txt", ".model", ".tiktoken", ".jinja", ".bpe")


def find_tokenizer(
    name: str | None, *, revision: str | None, model: str, weights: str
) -> tuple[str, hub.Repository]:
    """The tokenizer called `name`, or the model's own where it is None.

    Random weights of a published GPT-Neo take the packaged GPT-2 vocabulary, which is GPT-Neo's
    own, so that they need no Hub.
    """
    if name is None and weights == "random" and full_name(model) in GPT_NEO_MODELS:
        return PACKAGED, hub.Repository()
    name = name or full_name(model)
    what = f"the tokenizer {name}"
    repository = hub.find(what, name, revision)
    if repository.commit:
        for path in hub.file_names(what, name, repository):
            if "/" not in path and path.endswith(ENDINGS) and not path.endswith(".index.json"):
                hub.file(what, name, path, repository)
    return name, repository
