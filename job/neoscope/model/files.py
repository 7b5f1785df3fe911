"""The files of a model: where they are, and which of them a run reads, brought into the Hub's cache.

In: a name. Out: the repository, with config.json and weights in the cache. A run loads what is there
then, and `neoscope fetch` leaves it there: neither torch nor transformers is imported.
"""

from __future__ import annotations

import json
from pathlib import Path

from neoscope import hub
from neoscope.errors import InputError
from neoscope.model.shapes import PUBLISHED_SHAPES
from neoscope.spec import KNOWN_NAMES

CONFIG = "config.json"
# As transformers looks for them, the first that is there.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def find_files(name: str, *, revision: str | None, weights: str) -> hub.Repository:
    """Where the files of a model are, with its config.json in the cache; random weights of the published
    names need none."""
    if weights == "random" and name in PUBLISHED_SHAPES:
        return hub.Repository()
    what = f"the model {name}"
    repository = hub.find(what, name, revision, known=KNOWN_NAMES)
    hub.file(what, name, CONFIG, repository)
    return repository


def fetch_weights(name: str, repository: hub.Repository) -> list[Path]:
    """The files of the weights, of the first format that is there, brought into the cache if need be; none
    of a local folder that has none. Raises InputError where a model of the Hub has none, UnavailableError
    where only the Hub has them and can't be asked."""
    what = f"the model {name}"
    names = hub.file_names(what, name, repository)
    first = next((each for each in WEIGHTS if each in names), None)
    if first is None:
        if repository.commit is None:
            return []
        hub.check_answers(what, repository)
        raise InputError(f"{what} has no weights: it has no file named " + ", ".join(WEIGHTS))
    path = hub.file(what, name, first, repository)
    if path is None or not first.endswith(".index.json"):
        return [path] if path else []
    with hub.loading(what, repository):
        shards = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
    return [each for shard in shards if (each := hub.file(what, name, shard, repository))]
