"""Every key of a run: the names of its files and folders, and the patterns that tell them from others'.

In: numbers. Out: keys, relative to the run's URL. It does not know what the objects hold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from neoscope.spec import LAYER
from neoscope.statistics import neurons

CLAIM = "run.json"
MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.json"
RECORDS = "records"
ROLLUPS = "rollups"
ACTIVATIONS = "activations.zarr"
TOKEN_IDS = "token_ids"
TOKEN_LENGTH = "token_length"
STORED = "stored"  # whether a sequence is there, of runs whose text may end early
TOKEN_TEXT = "token_text"  # stored of selections; a run has vocabulary.json
STATISTICS = "statistics.zarr"
NEURONS = "neurons.zarr"
# What is kept of a partition for each; the spec, records and the manifest call them by these names too.
PARTITION_STATISTICS = "statistics"
PARTITION_NEURONS = "neurons"
PARTITION_TOKEN_SUMS = "token_sums"
TOKEN_SUMS = (
    "token-sums"  # the folder of its objects, one a layer: of each partition, and of the run
)
STATISTICS_DIMENSIONS = {
    "tokens": ("first_position", "length"),
    "histogram": ("layer", "first_position", "length", "bin"),
    "total": ("layer", "first_position", "length", "neuron"),
    "squared_deviation": ("layer", "first_position", "length", "neuron"),
    "layer": ("layer",),
    "first_position": ("first_position",),
    "length": ("length",),
    "neuron": ("neuron",),
    "bin_left": ("bin",),
    "bin_right": ("bin",),
}
NEURONS_DIMENSIONS = neurons.DIMENSIONS
REPORT = "report.html"  # beside a run, and no part of what it says
SELECTION = "selection.json"  # put first where a part of a run goes
RECORD_KEY = re.compile(rf"{RECORDS}/(\d{{5}})-(\d{{8}})\.json")
ROLLUP_KEY = re.compile(rf"{ROLLUPS}/(\d{{5}})\.json")
STATE_KEY = re.compile(
    rf"(({PARTITION_STATISTICS}|{PARTITION_NEURONS})/\d{{5}}-\d{{8}}|{TOKEN_SUMS}/\d{{5}}-\d{{8}}-\d{{2,}})"
    r"\.safetensors"
)
MERGED_KEY = re.compile(rf"{TOKEN_SUMS}/{LAYER}\d+\.safetensors")
ZARR_KEYS = r"(zarr\.json|{names}/zarr\.json|{names}/c(/\d+)+)"
FILES = (MANIFEST, CLAIM, VOCABULARY, REPORT)
FOLDERS = (
    ACTIVATIONS,
    STATISTICS,
    NEURONS,
    PARTITION_STATISTICS,
    PARTITION_NEURONS,
    TOKEN_SUMS,
    RECORDS,
    ROLLUPS,
)
PATTERNS = (
    RECORD_KEY,
    ROLLUP_KEY,
    STATE_KEY,
    MERGED_KEY,
    re.compile(
        f"{ACTIVATIONS}/"
        + ZARR_KEYS.format(names=rf"({LAYER}\d+|{TOKEN_IDS}|{TOKEN_LENGTH}|{STORED})")
    ),
    re.compile(f"{STATISTICS}/" + ZARR_KEYS.format(names=f"({'|'.join(STATISTICS_DIMENSIONS)})")),
    re.compile(f"{NEURONS}/" + ZARR_KEYS.format(names=f"({'|'.join(NEURONS_DIMENSIONS)})")),
)


def record_key(partition: int, batches: int) -> str:
    """The key of the record that `batches` batches of a partition are stored."""
    return f"{RECORDS}/{partition:05d}-{batches:08d}.json"


def rollup_key(partition: int) -> str:
    """The key of what all records of a partition say together."""
    return f"{ROLLUPS}/{partition:05d}.json"


def state_folder(name: str) -> str:
    """The folder of what is kept of partitions for the statistics with this name."""
    return TOKEN_SUMS if name == PARTITION_TOKEN_SUMS else name


def state_keys(name: str, partition: int, batches: int, layers: Sequence[int]) -> list[str]:
    """The keys of what is kept of a partition up to `batches`, for the statistics with this name: an
    object of all layers, or one of each for sums by token."""
    stem = f"{state_folder(name)}/{partition:05d}-{batches:08d}"
    if name == PARTITION_TOKEN_SUMS:
        return [f"{stem}-{layer:02d}.safetensors" for layer in layers]
    return [f"{stem}.safetensors"]


def state_of(key: str) -> tuple[str, int, int] | None:
    """The name of the statistics, the partition and the number of batches of one of `state_keys`; None of
    other keys."""
    if not STATE_KEY.fullmatch(key):
        return None
    folder, _, stem = key.removesuffix(".safetensors").partition("/")
    partition, batches = map(int, stem.split("-")[:2])
    return PARTITION_TOKEN_SUMS if folder == TOKEN_SUMS else folder, partition, batches


def merged_key(layer: int) -> str:
    """The key of a layer's sums by token of the whole run."""
    return f"{TOKEN_SUMS}/{LAYER}{layer}.safetensors"


def belongs(key: str) -> bool:
    """Whether an object is one of a run's own, by its name."""
    return key in FILES or any(pattern.fullmatch(key) for pattern in PATTERNS)
