"""RunSpec: everything that decides a run's result, and nothing else.

In: plain values, as the command line gives them. Out: a frozen value with a fingerprint.
It does not know where the result goes, on which device it is computed, or what the names resolve to.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from neoscope.argument_checks import check_choice, check_kind, check_layers, check_name
from neoscope.errors import InputError, UsageError

Side = Literal["output", "input"]
LAYER = "MLP_"  # MLP_0 is the first layer's
GPT_NEO_125M = "EleutherAI/gpt-neo-125m"
FINEWEB = "HuggingFaceFW/fineweb"
# FineWeb's own 10-billion-token sample: its default configuration lists over 20,000 files at every start.
FINEWEB_CONFIG = "sample-10BT"
MAX_LAYERS = 10_000
CONTEXTS = 32  # highest and lowest values that are kept of each neuron
MAX_COUNTED = (
    2**32 - 1
)  # tokens of a partition, of which 32 bits count those at which a neuron fires
SAMPLE = "sample"  # --dataset sample: the text packaged with neoscope
# The models whose shapes are packaged: with random weights they need no Hub.
GPT_NEO_MODELS = (GPT_NEO_125M, "EleutherAI/gpt-neo-1.3B", "EleutherAI/gpt-neo-2.7B")
# What a user may call them.
KNOWN_NAMES = (*(name.partition("/")[2] for name in GPT_NEO_MODELS), *GPT_NEO_MODELS)

Weights = Literal["pretrained", "random"]
Precision = Literal["float32", "bfloat16", "float16"]
Forward = Literal["fast", "reference"]
WEIGHTS, PRECISIONS, FORWARDS = map(get_args, (Weights, Precision, Forward))
DEVICES = ("auto", "cpu", "cuda")  # not of the spec: the result is the same
NO_MPS = "neoscope does not compute on Apple's GPU, where it was never tried: use cpu or auto"


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A local text file by what it holds: `size` in bytes and xxh3-128 `digest` of its bytes."""

    name: str
    size: int
    digest: str


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """What is run on what. Two equal specs give the same result; see `fingerprint`."""

    model: str = GPT_NEO_125M
    model_revision: str | None = None
    weights: Weights = "pretrained"
    seed: int | None = None
    tokenizer: str | None = None
    dataset: str | None = FINEWEB
    dataset_config: str | None = FINEWEB_CONFIG
    dataset_split: str | None = "train"
    dataset_revision: str | None = None
    text: tuple[TextFile, ...] = ()
    text_column: str = "text"
    text_end: Literal["error", "stop"] = "error"
    partitions: int = 1
    batches: int = 1
    sequences: int = 16
    positions: int = 512
    separator: Literal["none", "eos"] = "none"
    bos: bool = False
    hook: str | None = None
    hook_side: Side | None = None
    layers: tuple[int, ...] | None = None
    sequences_per_pass: int | None = None
    precision: Precision = "float32"
    forward: Forward = "fast"
    store_dtype: Literal["float32", "float16"] = "float32"
    compression: Literal["none", "lz4"] = "none"
    arrays: bool = True
    statistics: bool = True
    neurons: bool = True
    contexts: int = CONTEXTS
    token_sums: bool = False

    def __post_init__(self) -> None:
        if self.seed is not None and self.seed < 0:
            raise UsageError(f"--seed is {self.seed}: give 0 or more")
        for name in ("partitions", "batches", "sequences", "positions", "contexts"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} is {getattr(self, name)}: give 1 or more")
        if not (self.arrays or self.statistics or self.neurons):
            raise UsageError(
                "--no-arrays, --no-statistics and --no-neurons leave nothing to store: drop one"
            )
        if self.token_sums and self.arrays:
            raise UsageError(
                "--token-sums goes with --no-arrays only: of a run with arrays the sums follow from them; "
                "drop --token-sums, or give --no-arrays"
            )
        if self.token_sums and not self.neurons:
            raise UsageError(
                "--token-sums and --no-neurons do not fit: how much each neuron varies is what the "
                "statistics by neuron say; drop one"
            )
        if self.neurons and self.batches * self.tokens_per_batch > MAX_COUNTED:
            raise UsageError(
                f"a partition of {self.batches * self.tokens_per_batch:,} tokens has more than "
                f"{MAX_COUNTED:,}, to which the statistics by neuron count: give more --partitions, or "
                "--no-neurons"
            )
        if self.bos and self.positions == 1:
            raise UsageError("--bos takes the first of --positions 1: give 2 or more positions")
        if self.pass_sequences < 1 or self.sequences % self.pass_sequences:
            fitting = [n for n in range(1, self.sequences + 1) if self.sequences % n == 0]
            raise UsageError(
                f"--sequences-per-pass {self.sequences_per_pass} does not divide the "
                f"{self.sequences} sequences of a batch: give one of "
                + ", ".join(map(str, fitting))
            )
        if self.hook is not None:
            check_pattern(self.hook)

    @property
    def tokens_per_batch(self) -> int:
        return self.sequences * self.positions

    @property
    def pass_sequences(self) -> int:
        """Sequences of one forward pass."""
        return self.sequences if self.sequences_per_pass is None else self.sequences_per_pass

    @property
    def total_batches(self) -> int:
        return self.partitions * self.batches

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values, every field present."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]

    def identity(self) -> dict[str, Any]:
        """`to_json` without file names: a text file is what it holds, not what it is called."""
        values = self.to_json()
        for file in values["text"]:
            del file["name"]
        return values

    @property
    def fingerprint(self) -> str:
        """SHA-256 of `identity` as canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(canonical_json(self.identity())).hexdigest()


def make_spec(**options: Any) -> RunSpec:
    """A RunSpec from options of which None means not given; what does not fit is a UsageError, and what
    is of the wrong kind an InputError.

    Short names such as `gpt-neo-1.3B` become the Hub's. `layers` are words, `0,3,6-11`, or numbers.
    """
    given = {
        name: _of_its_kind(name, value)
        for name, value in options.items()
        if value is not None and not (name == "text" and value == ())
    }
    dataset = given.get("dataset")
    narrower = [f"dataset_{part}" for part in ("config", "split", "revision")]
    if "text" in given or dataset == SAMPLE:
        option = "--text" if "text" in given else f"--dataset {SAMPLE}"
        for name in ["dataset", *narrower] if "text" in given else narrower:
            if name in given:
                raise UsageError(
                    f"{option} and --{name.replace('_', '-')} do not fit together: drop one"
                )
        given |= dict.fromkeys(narrower) | {"dataset": dataset}
    elif dataset not in (None, FINEWEB):
        given.setdefault("dataset_config", None)
    if given.get("weights") == "random":
        given.setdefault("seed", 0)
        if (
            "model_revision" in given
            and full_name(given.get("model", GPT_NEO_125M)) in GPT_NEO_MODELS
        ):
            raise UsageError("--model-revision has no meaning with --weights random: drop one")
    elif "seed" in given:
        raise UsageError(f"--seed {given['seed']} goes with --weights random only: drop it")
    if "model" in given:
        given["model"] = full_name(given["model"])
    if "hook" in given:
        given.setdefault("hook_side", "output")
    elif "hook_side" in given:
        raise UsageError(f"--hook-side {given['hook_side']} goes with --hook only: drop it")
    if "contexts" in given and given.get("neurons") is False:
        raise UsageError(f"--contexts {given['contexts']} and --no-neurons do not fit: drop one")
    if "layers" in given:
        given["layers"] = _layers(given["layers"])
    return RunSpec(**given)


def _of_its_kind(name: str, value: Any) -> Any:
    """An option's value where it is what the field of `RunSpec` takes, numpy's numbers as Python's."""
    kinds = get_type_hints(RunSpec)
    if name not in kinds:
        near = difflib.get_close_matches(name, kinds, n=3, cutoff=0)
        raise UsageError(f"there is no option {name!r}; near are {', '.join(near)}")
    return check_kind(name, value, kinds[name])


def _layers(layers: Any) -> tuple[int, ...]:
    if not isinstance(layers, str):
        return check_layers(layers)
    found = number_ranges("--layers", layers)
    if any(part[-1] >= MAX_LAYERS for part in found):
        raise UsageError(f"--layers {layers}: no model has more than {MAX_LAYERS} layers")
    return tuple(sorted(set().union(*found)))


def number_ranges(option: str, text: str) -> list[range]:
    """What `0,3,6-11` names, range by range. Raises UsageError, naming the option, for anything else."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part, re.ASCII)
        numbers = range(int(match[1]), int(match[2] or match[1]) + 1) if match else None
        if not numbers:
            raise UsageError(f"{option} {text}: {part!r} is no number or range; write 0,3,6-11")
        found.append(numbers)
    return found


def full_name(model: str) -> str:
    """The Hub's name of a model; a local folder and any other name stay as they are."""
    names = {name.partition("/")[2].lower(): name for name in GPT_NEO_MODELS}
    known = names.get(model.removeprefix("EleutherAI/").lower(), model)
    return model if Path(model).is_dir() else known


def canonical_json(value: Any) -> bytes:
    """One byte string per JSON value: sorted keys, no white space, no NaN."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def differing_fields(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """`name: theirs, now mine` for every field of two `identity` values that differs."""
    names = sorted(mine.keys() | theirs.keys())
    return [
        f"{name} was {json.dumps(theirs.get(name))}, now {json.dumps(mine.get(name))}"
        for name in names
        if mine.get(name) != theirs.get(name)
    ]


def check_source(name: Any, revision: Any, weights: Any) -> str:
    """The name of a model or its tokenizer as a string. InputError for what there is not."""
    check_choice("weights", weights, WEIGHTS)
    if revision is not None and not isinstance(revision, str):
        raise InputError(f"revision={revision!r}: give a branch, tag or commit, or None for main")
    found = check_name("name", name)
    if revision and weights == "random" and full_name(found) in GPT_NEO_MODELS:
        raise InputError(f"revision={revision!r} has no meaning with weights='random': drop one")
    return found


def check_pattern(module: Any) -> None:
    if not isinstance(module, str):
        raise InputError(
            f'hook={module!r}: give a module\'s name, such as "model.layers.*.mlp.down_proj"'
        )
    if module.count("*") != 1:
        raise UsageError(
            f"--hook {module!r} has {module.count('*')} stars: give exactly one, where the layer's "
            'number stands, as in "model.layers.*.mlp.down_proj"'
        )
