"""The command line: parse, call, print. No logic.

Importing this module imports nothing heavy: `neoscope --help` answers at once.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import click

from neoscope.commands.options import (
    Device,
    connections_option,
    device_option,
    endpoint_option,
    option,
    output_argument,
    rate_options,
    spec_options,
)
from neoscope.errors import CheckError, InputError, UsageError

EXIT_CODES = """\b
Exit codes:
  0    done (or already done)
  2    wrong usage, or options that do not fit together
  3    invalid input; retrying will not help: text, tokenizer, model, bucket, access
  4    the destination holds another run or something else, or lies in a run
  5    a check failed; nothing was committed
  75   storage or the Hub did not answer: the same command may succeed later
  130  interrupted (SIGINT); 143  stopped (SIGTERM)
"""


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="neoscope")
def cli() -> None:
    """What every MLP neuron of a language model does on real text, as Zarr in object storage.

    Every option of `run` can be set in the environment too, as NEOSCOPE_ and its name in capitals
    (NEOSCOPE_DATASET_CONFIG is --dataset-config). Credentials come from where boto3 finds them.
    """


@cli.command(epilog=EXIT_CODES)
@output_argument
@spec_options
@option(
    "--partition",
    metavar="NUMBERS|auto",
    default="0",
    show_default=True,
    help="The partitions to make here, from 0, such as 3 or 0,2,5-7. auto takes this worker's share by "
    "the numbers that Kubernetes, Slurm, SkyPilot, torchrun or srun set.",
)
@option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="With --partition auto, the number of tasks where none of them is told it: the pods of a "
    "Kubernetes Job.  [default: a worker for each partition]",
)
@device_option
@endpoint_option
@connections_option
@option(
    "--sign-payload",
    is_flag=True,
    help="Sign the bodies of requests too, for storage that insists. Bodies are checked in any case, "
    "for less processor time.",
)
def run(
    output: str,
    text_paths: tuple[Path, ...],
    partition: str,
    workers: int | None,
    device: str,
    endpoint_url: str | None,
    connections: int | None,
    sign_payload: bool,
    **options: Any,
) -> None:
    """Run a model once over a text and store what its MLP neurons do.

    OUTPUT is s3://bucket/prefix or a local folder. The defaults take the first 8192 tokens of
    FineWeb as 16 sequences of 512, run GPT-Neo 125M once, and leave twelve arrays of
    16 x 512 x 3072 (1.2 GB) and a manifest. Rerun the same command to finish an
    interrupted run; of a whole one it says that all is there.
    """
    from neoscope.commands.summary import summary
    from neoscope.pipeline.run import start
    from neoscope.progress import Progress

    progress = Progress()
    for name in unknown_variables():
        progress.warn(f"{name} is set in the environment, but neoscope has no such option")
    url, manifest = start(
        output,
        options,
        partition=partition,
        workers=workers,
        text_paths=list(text_paths),
        device=device,
        endpoint_url=endpoint_url,
        connections=connections,
        sign_payload=sign_payload,
        progress=progress,
    )
    if manifest is None:
        click.echo(
            f"this worker's partitions are stored; others are missing: neoscope status {url}"
        )
    else:
        click.echo(summary(manifest, url, endpoint_url))


FETCHED = (
    *("model", "model_revision", "weights", "tokenizer"),
    *("dataset", "dataset_config", "dataset_split", "dataset_revision"),
    *("partitions", "batches", "sequences", "positions"),
)


@cli.command(
    name="fetch", epilog=EXIT_CODES, params=[each for each in run.params if each.name in FETCHED]
)
@click.option(
    "--text",
    is_flag=True,
    help="Bring the text too: of each partition so many whole files of the data set as its batches need, "
    "with room to spare.",
)
def fetch_command(text: bool, **options: Any) -> None:
    """Download model and tokenizer into the Hub's cache (HF_HOME), and nothing else.

    A run that is told the same of them finds them there, with HF_HUB_OFFLINE=1 without asking the Hub.
    Options of the text count with --text only.
    """
    from neoscope.commands.fetch import fetch

    for line in fetch(options, text=text):
        click.echo(line)


@cli.command(name="status")
@output_argument
@endpoint_option
def status_command(output: str, endpoint_url: str | None) -> None:
    """Show a run's progress: batches by partition, and whether it is committed."""
    from neoscope.reading.status import status
    from neoscope.storage.store import open_store

    found = status(open_store(output, endpoint_url=endpoint_url))
    if len(found.stored) > 1:
        for partition, count in enumerate(found.stored):
            click.echo(f"partition {partition}: {count} of {found.batches} batches")
    click.echo(f"{found.url}: {found.line}")


@cli.command(name="list", epilog=EXIT_CODES)
@click.argument("place")
@click.option(
    "--depth",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many folders deep to look: 1 is PLACE/RUN, 2 PLACE/FOLDER/RUN as well.",
)
@click.option("--json", "as_objects", is_flag=True, help="Print a list of objects as JSON.")
@endpoint_option
def list_command(place: str, depth: int, as_objects: bool, endpoint_url: str | None) -> None:
    """List the runs under PLACE: state, model, text, tokens and size of each.

    PLACE is s3://bucket, s3://bucket/prefix or a local folder. Arrays are not read, nor anything in the
    folders of a run. A run that is damaged is listed as that, and the exit code is then 5.
    """
    from neoscope.commands.list import as_json, as_table
    from neoscope.reading.runs import find_runs
    from neoscope.storage.store import open_store

    store = open_store(place, endpoint_url=endpoint_url, root=True)
    entries = sorted(find_runs(store, depth), key=lambda entry: entry.url)
    if as_objects:
        click.echo(as_json(entries))
    elif entries:
        click.echo("\n".join(as_table(entries)))
    else:
        click.echo(f"no run at {store.url} or {depth} deep in its folders: --depth looks deeper")
    damaged = [entry.damage for entry in entries if entry.damage]
    if damaged:
        raise CheckError(f"{len(damaged)} of {len(entries)} runs are damaged: {damaged[0]}")


@cli.command(name="verify", epilog=EXIT_CODES)
@output_argument
@endpoint_option
@connections_option
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
@option(
    "--device",
    type=Device(),
    default="cpu",
    show_default=True,
    help="Where --recompute computes, in float32 whatever the run's precision: the CPU knows nothing of "
    "a GPU's faults.",
)
def verify_command(
    output: str,
    endpoint_url: str | None,
    connections: int | None,
    recompute: int | None,
    text: bool,
    text_paths: tuple[Path, ...],
    device: str,
) -> None:
    """Check every stored byte of a run against what its records say.

    Each find is one line that names the object and what to do; the exit code is then 5. Objects that are
    not the run's and lie beside it are told, and are no find; those among its arrays and records are.
    """
    from neoscope.commands.verify import check_request, told, verify
    from neoscope.format.records import read_claim
    from neoscope.progress import Progress
    from neoscope.storage.store import open_store

    store = open_store(output, endpoint_url=endpoint_url)
    paths = list(text_paths)
    check_request(store, recompute=recompute, text=text, text_paths=paths)
    store.use_connections(connections)
    progress = Progress()
    checked = verify(store, progress)
    problems = list(checked.problems)
    claim = None if problems else read_claim(store)
    if claim and recompute:
        from neoscope.commands.recompute import recompute as again

        problems += again(store, claim, recompute, device, progress)
    if claim and text:
        from neoscope.commands.recompute import retokenize

        problems += retokenize(store, claim, paths, progress)
    for line in [*problems, *told(checked)]:
        click.echo(str(line))
    if problems:
        raise CheckError(f"{store.url} is not as it was committed: {len(problems)} problems")
    more = f"; {recompute} sequences computed again agree" if recompute else ""
    more += "; the text read again gives the same tokens" if text else ""
    click.echo(
        f"{store.url} is whole: {checked.objects:,} objects, {checked.size:,} bytes, each as it was "
        f"committed{more}"
    )


@cli.command(name="pull", epilog=EXIT_CODES)
@output_argument
@click.argument("dest")
# Not in the environment: NEOSCOPE_SEQUENCES and NEOSCOPE_LAYERS are those of a run.
@click.option("--layers", metavar="NUMBERS", help="Only these layers: 0,3,6-11.")
@click.option(
    "--sequences", metavar="NUMBERS", help="Only these sequences, from 0 over the whole run."
)
@click.option("--neurons", metavar="NUMBERS", help="Only these neurons of every layer.")
@click.option(
    "--to",
    "form",
    type=click.Choice(["zarr", "safetensors"]),
    default="zarr",
    show_default=True,
    help="safetensors is one file a layer, and one for the tokens, in a local folder.",
)
@endpoint_option
@connections_option
def pull_command(
    output: str,
    dest: str,
    layers: str | None,
    sequences: str | None,
    neurons: str | None,
    form: str,
    endpoint_url: str | None,
    connections: int | None,
) -> None:
    """Bring a run from OUTPUT to DEST: a folder, or s3://bucket/prefix on the same endpoint.

    Without options DEST becomes a run of its own, which `verify` holds against the same digests. A
    selection becomes one plain Zarr group, DEST/activations.zarr. Rerun the same command
    to resume.
    """
    from neoscope.commands.how_to_open import opening_of
    from neoscope.commands.pull.pull import pull
    from neoscope.progress import Progress
    from neoscope.storage.store import open_store

    source = open_store(output, endpoint_url=endpoint_url)
    destination = open_store(dest, endpoint_url=endpoint_url, write=True)
    source.use_connections(connections)
    destination.use_connections(connections)
    said = pull(
        source,
        destination,
        layers=layers,
        sequences=sequences,
        neurons=neurons,
        form=form,
        progress=Progress(),
    )
    click.echo("\n".join([said, *opening_of(destination, endpoint_url)]))


@cli.command(name="plan", epilog=EXIT_CODES)
@spec_options
@rate_options
def plan_command(text_paths: tuple[Path, ...], **options: Any) -> None:
    """Show what `neoscope run` with the same options will store and need, and compute nothing.

    Bytes of arrays, objects and requests are exact but for compression. Rates give time and price: give those
    of your machines and your storage. The shapes of the three GPT-Neo are known without the Hub.
    """
    from neoscope.commands.plan import plan
    from neoscope.commands.price import Rates, lines
    from neoscope.pipeline.run import spec_of

    rates = Rates(**{field.name: options.pop(field.name) for field in dataclasses.fields(Rates)})
    for line in lines(plan(spec_of(options, list(text_paths))), rates):
        click.echo(line)


@cli.command(name="neuron", epilog=EXIT_CODES)
@output_argument
@click.argument("layer", type=click.IntRange(0))
@click.argument("neuron", type=click.IntRange(0))
@click.option(
    "--count",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Passages, of those that the run keeps.",
)
@click.option("--lowest", is_flag=True, help="Show the lowest values instead of the highest.")
@click.option("--json", "as_json", is_flag=True, help="Give all that is known as JSON.")
@endpoint_option
def neuron_command(
    output: str,
    layer: int,
    neuron: int,
    count: int,
    lowest: bool,
    as_json: bool,
    endpoint_url: str | None,
) -> None:
    """Show what one neuron of a run does, on one screen.

    How often it fires, its moments, its correlation with token length, each with the share of its layer's
    neurons that have less; a histogram of its values; and the passages at which they are highest, shaded by
    value where the run has arrays. There are no colours outside of a terminal, or with NO_COLOR.
    """
    import json
    import shutil

    from neoscope.commands.neuron import describe
    from neoscope.commands.neuron_screen import screen
    from neoscope.storage.store import open_store

    found = describe(open_store(output, endpoint_url=endpoint_url), layer, neuron, count)
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False))
        return
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    width = shutil.get_terminal_size((100, 40)).columns
    click.echo("\n".join(screen(found, width=width, colour=colour, lowest=lowest)), color=colour)


@cli.command(name="atlas", epilog=EXIT_CODES)
@output_argument
@click.argument("dest")
# Not in the environment: NEOSCOPE_LAYERS is that of a run.
@click.option("--layers", metavar="NUMBERS", help="Only these layers: 0,3,6-11.")
@click.option(
    "--values/--no-values",
    default=True,
    help="Whether to shade passages by value, for which a run's arrays are read, once.",
)
@click.option("--serve", is_flag=True, help="Show it at once, at an address of this machine only.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="With --serve.  [default: a free one]"
)
@endpoint_option
@connections_option
def atlas_command(
    output: str,
    dest: str,
    layers: str | None,
    values: bool,
    serve: bool,
    port: int,
    endpoint_url: str | None,
    connections: int | None,
) -> None:
    """Write pages of every neuron of a run: a table of each layer, and what each neuron does.

    DEST is a folder, or s3://bucket/prefix on the same endpoint: static files for any web server or bucket,
    which ask no other server for anything. Rerun the same command to finish or renew them.
    """
    from neoscope.commands.atlas.atlas import write_atlas
    from neoscope.commands.atlas.serve import loopback_server
    from neoscope.progress import Progress
    from neoscope.storage.store import open_store

    source = open_store(output, endpoint_url=endpoint_url)
    store = open_store(dest, endpoint_url=endpoint_url, write=True)
    if serve and not store.is_local:
        raise UsageError(f"--serve shows a folder, not {store.url}: give a folder, or drop --serve")
    source.use_connections(connections)
    store.use_connections(connections)
    click.echo(write_atlas(source, store, layers=layers, values=values, progress=Progress()))
    if serve:
        server = loopback_server(store.url, port)
        click.echo(f"http://127.0.0.1:{server.server_port}/ until it is interrupted")
        server.serve_forever()


@cli.command(name="neuron-records", epilog=EXIT_CODES)
@output_argument
@click.argument("dest")
# Not in the environment: NEOSCOPE_LAYERS is that of a run.
@click.option("--layers", metavar="NUMBERS", help="Only these layers: 0,3,6-11.")
@click.option("--neurons", metavar="NUMBERS", help="Only these neurons of every layer.")
@endpoint_option
@connections_option
def neuron_records_command(
    output: str,
    dest: str,
    layers: str | None,
    neurons: str | None,
    endpoint_url: str | None,
    connections: int | None,
) -> None:
    """Write neuron records, which OpenAI's neuron_explainer loads: DEST/LAYER/NEURON.json.

    Each has the passages at which the neuron is highest, with its value at every token, as many drawn at
    random, and its moments. DEST is a folder, or s3://bucket/prefix on the same endpoint. Rerun the same
    command to finish.
    """
    from neoscope.commands.neuron_records import write_neuron_records
    from neoscope.progress import Progress
    from neoscope.storage.store import open_store

    source = open_store(output, endpoint_url=endpoint_url)
    store = open_store(dest, endpoint_url=endpoint_url, write=True)
    source.use_connections(connections)
    store.use_connections(connections)
    said = write_neuron_records(source, store, layers=layers, neurons=neurons, progress=Progress())
    click.echo(said)


PERMUTATIONS = 200


@cli.command(name="report", epilog=EXIT_CODES)
@output_argument
@endpoint_option
@option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write the page to this local file.",
)
@click.option(
    "--tokens/--no-tokens",
    default=True,
    help="Whether to ask of every neuron if it follows the length of tokens, or which tokens they are. "
    "That reads all arrays; the rest of the page needs none.  [default: tokens, where there are arrays]",
)
@click.option(
    "--permutations",
    type=click.IntRange(19),
    metavar="N",
    help="How many times lengths are dealt out anew among the tokens, to see what chance gives; 19 are "
    f"the fewest that tell one time in twenty.  [default: {PERMUTATIONS}]",
)
def report_command(
    output: str,
    endpoint_url: str | None,
    file: Path | None,
    tokens: bool,
    permutations: int | None,
) -> None:
    """Show a run as one page of pictures, made from its statistics and its arrays.

    The page is stored beside the run as report.html, and needs no network to be read.
    """
    from neoscope.commands.report.report import report
    from neoscope.format.layout import REPORT
    from neoscope.progress import Progress
    from neoscope.storage.store import open_store

    if permutations and not tokens:
        raise UsageError(
            f"--permutations {permutations} is of the tokens that --no-tokens leaves out"
        )
    store = open_store(output, endpoint_url=endpoint_url, change=True)
    times = (permutations or PERMUTATIONS) if tokens else None
    page = report(store, permutations=times, progress=Progress()).encode()
    store.put(REPORT, page)
    click.echo(f"stored:  {store.url}/{REPORT}")
    if file:
        try:
            file.write_bytes(page)
        except OSError as error:
            raise InputError(f"cannot write {file}: {error.strerror}") from None
        click.echo(f"written: {file}")


@cli.command(name="gpu-check", epilog=EXIT_CODES)
def gpu_check_command() -> None:
    """Check that this machine's GPU computes what a CPU does, and measure it.

    A PASS or FAIL line for each check, a table, and both as JSON in the last line. It takes some minutes,
    random weights and no Hub. Without a GPU it says so (exit 3).
    """
    from neoscope.model.device import check_device

    check_device("cuda")
    from neoscope.commands.gpu_check.gpu_check import gpu_check

    for line in gpu_check("cuda"):
        click.echo(line)


@cli.command()
@output_argument
@endpoint_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(output: str, endpoint_url: str | None, yes: bool) -> None:
    """Delete a run: the manifest first, then all that belongs to the run and nothing else."""
    from neoscope.commands.delete import delete_run
    from neoscope.storage.store import open_store

    store = open_store(output, endpoint_url=endpoint_url, change=True)
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
