"""The options that several commands take, each written once.

In: nothing. Out: decorators for Click's commands. It does not know what the commands do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from neoscope.spec import CONTEXTS, FINEWEB, FINEWEB_CONFIG, GPT_NEO_125M, NO_MPS, SAMPLE
from neoscope.storage.connections import FIRST

Command = TypeVar("Command", bound=Callable[..., Any])


def option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    """An option that can also be set as NEOSCOPE_<OPTION> in the environment."""
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    variable = "NEOSCOPE_" + long[2:].upper().replace("-", "_")
    settings.setdefault("envvar", [variable])
    settings.setdefault("show_envvar", False)
    return click.option(*names, **settings)


output_argument = click.argument("output", envvar="NEOSCOPE_OUTPUT")
endpoint_option = option(
    "--endpoint-url",
    metavar="URL",
    help="Where S3 is, for storage other than AWS.  [default: as boto3 finds it: "
    "AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, the profile, AWS]",
)

connections_option = option(
    "--connections",
    type=click.IntRange(1),
    metavar="N",
    help="Bodies on their way to the storage at a time, and as many from it.  [default: as many as make "
    f"it faster, from {FIRST} on]",
)


class Device(click.ParamType[str]):
    """`auto`, `cpu`, `cuda`, or one GPU of several as `cuda:N`."""

    name = "device"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        if value.partition(":")[0] == "mps":
            self.fail(NO_MPS, param, ctx)
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value, re.ASCII):
            self.fail(f"{value!r} is no device: give auto, cpu, cuda or cuda:N", param, ctx)
        return str(value)


device_option = option(
    "--device",
    type=Device(),
    metavar="auto|cpu|cuda|cuda:N",
    default="auto",
    show_default=True,
    help="Where to compute; auto is a GPU where there is one. Of several, a process that torchrun or "
    "srun started takes the one of its number on the node.",
)

SPEC_OPTIONS = (
    option(
        "--model",
        default=GPT_NEO_125M,
        show_default=True,
        help="A decoder of transformers: its name on the Hub or a local folder. gpt-neo-125m, "
        "gpt-neo-1.3B and gpt-neo-2.7B do by themselves.",
    ),
    option("--model-revision", metavar="REV", help="Branch, tag or commit.  [default: main]"),
    option(
        "--weights",
        type=click.Choice(["pretrained", "random"]),
        default="pretrained",
        show_default=True,
        help="Random weights have GPT-Neo's own initial distribution, and need no Hub for the three "
        "names above.",
    ),
    option("--seed", type=click.IntRange(0), help="Seed for random weights.  [default: 0]"),
    option("--tokenizer", help="Name on the Hub or local folder.  [default: the model's own]"),
    option(
        "--dataset",
        help="Name on the Hub, streamed and never downloaded whole; or "
        f"'{SAMPLE}', a small text that comes with neoscope.  [default: {FINEWEB}]",
    ),
    option(
        "--dataset-config",
        metavar="NAME",
        help=f"Configuration of the data set.  [default for FineWeb: {FINEWEB_CONFIG}]",
    ),
    option("--dataset-split", metavar="NAME", help="Split of the data set.  [default: train]"),
    option("--dataset-revision", metavar="REV", help="Branch, tag or commit.  [default: main]"),
    option(
        "--text",
        "text_paths",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A local file instead of a data set: JSONL, Parquet or plain text (one document a file), "
        "by its ending. Repeat it for more files of the same kind.",
    ),
    option("--text-column", default="text", show_default=True, help="The column that is the text."),
    option(
        "--text-end",
        type=click.Choice(["error", "stop"]),
        default="error",
        show_default=True,
        help="What it is when a partition's text ends before its --batches: an error, or its end, after its "
        "last whole batch. The rows that it lacks are told, and left out when the run is opened.",
    ),
    option(
        "--partitions",
        type=int,
        default=1,
        show_default=True,
        help="Shares of the text, for as many workers or fewer: each share is made by itself.",
    ),
    option(
        "--batches",
        type=int,
        default=1,
        show_default=True,
        help="Batches of each partition, one forward pass each; with --text-end stop at most so many.",
    ),
    option("--sequences", type=int, default=16, show_default=True, help="Sequences of one batch."),
    option("--positions", type=int, default=512, show_default=True, help="Tokens of one sequence."),
    option(
        "--separator",
        type=click.Choice(["none", "eos"]),
        default="none",
        show_default=True,
        help="What stands after each document: nothing, or the end-of-text token.",
    ),
    option(
        "--bos",
        is_flag=True,
        help="Begin each sequence with the beginning-of-sequence token, which takes the first "
        "position.",
    ),
    option(
        "--hook",
        metavar="PATTERN",
        help="The module of each layer to capture, * for the layer's number, such as "
        "'model.layers.*.mlp.gate_proj'.  [default: the MLP's neurons, where the architecture is "
        "known]",
    ),
    option(
        "--hook-side",
        type=click.Choice(["output", "input"]),
        help="Which side of the modules of --hook.  [default: output]",
    ),
    option(
        "--layers", metavar="LIST", help="Some of the layers, such as 0,3,6-11.  [default: all]"
    ),
    option(
        "--sequences-per-pass",
        type=int,
        metavar="N",
        help="Sequences of one forward pass: fewer need less memory.  [default: all of a batch]",
    ),
    option(
        "--precision",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        default="float32",
        show_default=True,
        help="Dtype of weights and computation.",
    ),
    option(
        "--store-dtype",
        type=click.Choice(["float32", "float16"]),
        default="float32",
        show_default=True,
        help="Dtype of the stored arrays: 4 or 2 bytes a value.",
    ),
    option(
        "--compression",
        type=click.Choice(["none", "lz4"]),
        default="none",
        show_default=True,
        help="Compression of the stored arrays; lz4 is lossless and stores float32 in 0.9 of its size.",
    ),
    option(
        "--arrays/--no-arrays",
        default=True,
        help="Whether to store the activations. Without them the statistics are all that is kept, "
        "with the token ids.",
    ),
    option(
        "--statistics/--no-statistics",
        default=True,
        help="Whether to store statistics by token length: histograms, means and deviations.",
    ),
    option(
        "--neurons/--no-neurons",
        default=True,
        help="Whether to store what each neuron does: how often it fires, its moments and histogram, and "
        "where its values are highest and lowest.",
    ),
    option(
        "--contexts",
        type=int,
        metavar="N",
        help="Highest and lowest values that are kept of each neuron, one for each sequence.  "
        f"[default: {CONTEXTS}]",
    ),
    option(
        "--token-sums",
        is_flag=True,
        help="With --no-arrays, also store the sums of what every neuron does at each token id, which tell "
        "length from which token it is. 8 bytes for every layer, token id and neuron (or number of the "
        "hidden state, where neurons are outputs of a linear map): see neoscope plan.",
    ),
    option(
        "--forward",
        type=click.Choice(["fast", "reference"]),
        default="fast",
        show_default=True,
        help="The forward pass: the fastest (ours for GPT-Neo, else transformers' with fused "
        "attention), or transformers' eager one to compare with.",
    ),
)


RATE_OPTIONS = tuple(
    option(name, type=click.FloatRange(0, min_open=True), metavar="N", help=text)
    for name, text in (
        ("--tflops", "What a worker computes: 10^12 operations a second."),
        ("--mb-per-second", "What a worker stores: 10^6 bytes a second."),
        ("--per-hour", "Price of a worker for an hour."),
        ("--per-gb-month", "Price of 10^9 bytes stored for a month."),
        ("--per-1000-puts", "Price of 1000 PUT or LIST requests."),
        ("--per-1000-gets", "Price of 1000 GET or HEAD requests."),
    )
)


def spec_options(command: Command) -> Command:
    """The options that decide a run's result: the fields of `RunSpec`, and the text files."""
    return _with(SPEC_OPTIONS, command)


def rate_options(command: Command) -> Command:
    """What machine and storage do and cost: the fields of `plan.Rates`."""
    return _with(RATE_OPTIONS, command)


def _with(options: tuple[Callable[[Command], Command], ...], command: Command) -> Command:
    for each in reversed(options):
        command = each(command)
    return command
