"""The command line: parse, call, print, exit code. No logic.

Importing this module imports nothing heavy: `neoscope --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

from neoscope.errors import CheckError, NeoscopeError, UsageError
from neoscope.spec import FINEWEB, FINEWEB_CONFIG, GPT_NEO_125M, SAMPLE

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_CODES = """\b
Exit codes:
  0    done (or already done)
  2    wrong usage, or options that do not fit together
  3    bad input that no retry cures: text, tokenizer, model, bucket, access
  4    the place already holds another run
  5    a check failed; nothing was committed
  75   storage or the Hub did not answer: the same command may succeed later
  130  interrupted (SIGINT); 143  stopped (SIGTERM)
"""


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
    envvar=["NEOSCOPE_ENDPOINT_URL", "AWS_ENDPOINT_URL"],
    metavar="URL",
    help="Where S3 is, for storage other than AWS; also AWS_ENDPOINT_URL.",
)

device_option = option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto is the GPU where there is one.",
)


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="neoscope")
def cli() -> None:
    """What every MLP neuron of a language model does on real text, as Zarr in object storage.

    Every option of `run` can be set in the environment too, as NEOSCOPE_ and its name in capitals
    (NEOSCOPE_DATASET_CONFIG is --dataset-config). Credentials come from where boto3 finds them.
    """


@cli.command(epilog=EXIT_CODES)
@output_argument
@option(
    "--model",
    default=GPT_NEO_125M,
    show_default=True,
    help="A GPT-Neo: its name on the Hub or a local folder. gpt-neo-125m, gpt-neo-1.3B and "
    "gpt-neo-2.7B do by themselves.",
)
@option("--model-revision", metavar="REV", help="Branch, tag or commit.  [default: main]")
@option(
    "--weights",
    type=click.Choice(["pretrained", "random"]),
    default="pretrained",
    show_default=True,
    help="Random weights have the model's own initial distribution, and need no Hub for the three "
    "names above.",
)
@option("--seed", type=click.IntRange(0), help="Of the random weights.  [default: 0]")
@option("--tokenizer", help="Name on the Hub or local folder.  [default: the model's own]")
@option(
    "--dataset",
    help="Name on the Hub, streamed and never downloaded whole; or "
    f"'{SAMPLE}', a small text that comes with neoscope.  [default: {FINEWEB}]",
)
@option(
    "--dataset-config",
    metavar="NAME",
    help=f"Configuration of the data set.  [default for FineWeb: {FINEWEB_CONFIG}]",
)
@option("--dataset-split", metavar="NAME", help="Split of the data set.  [default: train]")
@option("--dataset-revision", metavar="REV", help="Branch, tag or commit.  [default: main]")
@option(
    "--text",
    "text_paths",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A local file instead of a data set: JSONL, Parquet or plain text (one document a file), "
    "by its ending. Repeat it for more files of the same kind.",
)
@option("--text-column", default="text", show_default=True, help="The column that is the text.")
@option(
    "--partitions",
    type=int,
    default=1,
    show_default=True,
    help="Workers that share the run: each takes its own share of the text.",
)
@option(
    "--partition",
    metavar="NUMBER|auto",
    default="0",
    show_default=True,
    help="This worker's partition, from 0; auto takes JOB_COMPLETION_INDEX.",
)
@option(
    "--batches",
    type=int,
    default=1,
    show_default=True,
    help="Batches of each partition: one forward pass each.",
)
@option("--sequences", type=int, default=16, show_default=True, help="Sequences of one batch.")
@option("--positions", type=int, default=512, show_default=True, help="Tokens of one sequence.")
@option(
    "--separator",
    type=click.Choice(["none", "eos"]),
    default="none",
    show_default=True,
    help="What stands after each document: nothing, or the end-of-text token.",
)
@device_option
@option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of weights and computation.",
)
@option(
    "--store-dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Of the stored arrays: 4 or 2 bytes a value.",
)
@option(
    "--compression",
    type=click.Choice(["none", "lz4"]),
    default="none",
    show_default=True,
    help="Of the stored arrays; lz4 is lossless and stores float32 in 0.9 of its size.",
)
@option(
    "--forward",
    type=click.Choice(["fast", "reference"]),
    default="fast",
    show_default=True,
    help="The forward pass: ours, or transformers' own to compare with.",
)
@endpoint_option
@option(
    "--sign-payload",
    is_flag=True,
    help="Sign the bodies of requests too, for storage that insists; by default each chunk's own "
    "checksum guards it, which costs a third of the processor time.",
)
def run(
    output: str,
    text_paths: tuple[Path, ...],
    partition: str,
    device: str,
    endpoint_url: str | None,
    sign_payload: bool,
    **options: Any,
) -> None:
    """Run a model once over a text and store what its MLP neurons do.

    OUTPUT is s3://bucket/prefix or a local folder. The defaults take the first 8192 tokens of
    FineWeb as 16 sequences of 512, run GPT-Neo 125M once, and leave twelve arrays of
    16 x 512 x 3072 (1.2 GB) and a manifest. The same command again finishes
    what was broken off, or says that all is there.
    """
    from neoscope.progress import Progress
    from neoscope.run import run as run_job
    from neoscope.summary import summary

    progress = Progress()
    for name in unknown_variables():
        progress.warn(f"{name} is set in the environment, but neoscope has no such option")
    url, manifest = run_job(
        output,
        options,
        partition=partition,
        text_paths=list(text_paths),
        device=device,
        endpoint_url=endpoint_url,
        sign_payload=sign_payload,
        progress=progress,
    )
    if manifest is None:
        click.echo(f"this partition is stored; others are missing: neoscope status {url}")
    else:
        click.echo(summary(manifest, url, endpoint_url))


FETCHED = ("model", "model_revision", "weights", "tokenizer")


@cli.command(
    name="fetch", epilog=EXIT_CODES, params=[each for each in run.params if each.name in FETCHED]
)
def fetch_command(**options: Any) -> None:
    """Download model and tokenizer into the Hub's cache (HF_HOME), and nothing else.

    A run that is told the same of them finds them there.
    """
    from neoscope.fetch import fetch

    for line in fetch(options):
        click.echo(line)


@cli.command(name="status")
@output_argument
@endpoint_option
def status_command(output: str, endpoint_url: str | None) -> None:
    """Tell how far a run is: batches by partition, and whether it is committed."""
    from neoscope.status import status
    from neoscope.storage import open_store

    found = status(open_store(output, endpoint_url=endpoint_url))
    if len(found.stored) > 1:
        for partition, count in enumerate(found.stored):
            click.echo(f"partition {partition}: {count} of {found.batches} batches")
    click.echo(f"{found.url}: {found.line}")


@cli.command(name="verify", epilog=EXIT_CODES)
@output_argument
@endpoint_option
@option(
    "--recompute",
    metavar="N",
    type=click.IntRange(1),
    help="Also compute N of the sequences again with transformers' own model, and compare.",
)
@click.option(
    "--text", is_flag=True, help="Also stream the recorded text again, and compare the tokens."
)
@option(
    "--text-file",
    "text_paths",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --text, the files of a run that was made of local files, in the same order.",
)
@device_option
def verify_command(
    output: str,
    endpoint_url: str | None,
    recompute: int | None,
    text: bool,
    text_paths: tuple[Path, ...],
    device: str,
) -> None:
    """Check every stored byte of a run against what its records say.

    Each find is one line that names the object and what to do; the exit code is then 5.
    """
    from neoscope.progress import Progress
    from neoscope.records import read_claim
    from neoscope.storage import open_store
    from neoscope.verify import verify

    store = open_store(output, endpoint_url=endpoint_url)
    progress = Progress()
    finds = verify(store, progress)
    claim = None if finds else read_claim(store)
    if claim and recompute:
        from neoscope.recompute import recompute as again

        finds += again(store, claim, recompute, device, progress)
    if claim and text:
        from neoscope.recompute import retokenize

        finds += retokenize(store, claim, list(text_paths), progress)
    for find in finds:
        click.echo(str(find))
    if finds:
        raise CheckError(f"{store.url} is not as it was committed: {len(finds)} finds")
    click.echo(f"{store.url} is whole, and every byte is as it was committed")


@cli.command()
@output_argument
@endpoint_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(output: str, endpoint_url: str | None, yes: bool) -> None:
    """Delete a run: the manifest first, then all that belongs to the run and nothing else."""
    from neoscope.delete import delete_run
    from neoscope.storage import open_store

    store = open_store(output, endpoint_url=endpoint_url)
    if not yes and not (sys.stdin.isatty() and click.confirm(f"Delete the run at {store.url}?")):
        raise UsageError(f"{store.url} is not deleted: answer y, or give --yes")
    gone, others = delete_run(store)
    left = f"; {others} objects that are not the run's stay" if others else ""
    click.echo(f"deleted {gone} objects of the run at {store.url}{left}")


def unknown_variables() -> list[str]:
    """The NEOSCOPE_ variables in the environment that no option reads."""
    known: set[str] = set()
    for command in cli.commands.values():
        for parameter in command.params:
            names = parameter.envvar or []
            known.update([names] if isinstance(names, str) else names)
    return sorted(name for name in os.environ if name.startswith("NEOSCOPE_") and name not in known)


def main() -> NoReturn:
    """The console script.

    The command runs on a thread of its own, so that the main thread is free to take a signal at any
    moment: while a library is imported, a forward pass runs or a store does not answer. Everything
    is stored in whole objects and recorded after it is stored, so ending at once loses nothing that
    is recorded. The process ends by `os._exit` throughout, since the destructors of a Parquet stream
    that was not read to its end can abort Python at exit.
    """
    codes: list[int] = []
    worker = threading.Thread(target=lambda: codes.append(_invoke(sys.argv[1:])), daemon=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    worker.start()
    worker.join()
    _exit(codes[0] if codes else 1)


def _invoke(arguments: list[str]) -> int:
    """Run one command and return its exit code; every error of the user's is one line."""
    try:
        code = cli.main(arguments, prog_name="neoscope", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except NeoscopeError as error:
        message, code = str(error), error.exit_code
    except click.Abort:
        message, code = "interrupted", 130
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        message, code = error.format_message(), 2
    except Exception:
        traceback.print_exc()
        message, code = "this is a defect of neoscope: please report it with the lines above", 1
    print("neoscope: error: " + " ".join(message.split()), file=sys.stderr)
    return code


def _stop(number: int, _frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    print(
        f"\nneoscope: stopped by {name}; nothing is half-written. The same command goes on "
        "from the last record.",
        file=sys.stderr,
    )
    _exit(128 + number)


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 1
    os._exit(code)
