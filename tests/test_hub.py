"""Models, tokenizers and data sets from a Hub: the Hub's own clients against a server on loopback.

The clients read HF_ENDPOINT and HF_HOME when they are imported, so that every Hub is spoken to from a
process of its own; as a start takes seconds, commands of one environment share one where they can.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from support.command import Finished, neoscope
from support.fake_hub import FakeHub, Fault, refusing, serving

SEQUENCES, POSITIONS = 8, 24
SIZE = ("--sequences", str(SEQUENCES), "--positions", str(POSITIONS))
TOKEN = "hf_opensWhatIsNotForEverybody"
DOCUMENTS = [
    (
        f"<urn:uuid:{number}>",
        f"Document {number} says: " + "what the neurons do. " * (1 + number % 4),
    )
    for number in range(20)
]
CONFIGS = """---
configs:
- config_name: default
  data_files: data/*.parquet
- config_name: small
  data_files:
  - split: train
    path: small/train.parquet
  - split: test
    path: small/test.parquet
---
Two configurations.
"""
FAULTS = (
    Fault("/acme/down", status=503),
    Fault("GET /cdn/acme/unwell/.*safetensors", status=503),
    Fault("GET /cdn/acme/halting/.*safetensors", after=1000),
    Fault("GET /api/datasets/acme/mute/tree"),
    Fault("GET /cdn/datasets/acme/halting/", after=100),
)
UNWRITABLE = Path("/sys/neoscope")  # in /sys nobody makes a folder, root neither

EACH = """
import dataclasses, json, os, sys
sys.path.insert(0, sys.argv[1])
given = dict(os.environ)
from support.command import invoke  # which clears what a caller has set
os.environ.update(given)
for arguments in json.loads(sys.argv[2]):
    print(json.dumps(dataclasses.asdict(invoke(*arguments))), flush=True)
os._exit(0)
"""

Commands = Mapping[str, list[object]]


def start(commands: Commands, **environment: str) -> subprocess.Popen[str]:
    """Start a process that runs several commands, one after the other."""
    given = json.dumps([[str(argument) for argument in command] for command in commands.values()])
    return subprocess.Popen(
        [sys.executable, "-c", EACH, Path(__file__).parent, given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def finish(process: subprocess.Popen[str], commands: Commands) -> dict[str, Finished]:
    """How each of the commands of a process ended."""
    out, err = process.communicate(timeout=280)
    assert err == "", "something was said beside the commands' own words"
    results = [Finished(**json.loads(line)) for line in out.splitlines()]
    return dict(zip(commands, results, strict=True))


def each(commands: Commands, **environment: str) -> dict[str, Finished]:
    """Run several commands in one process of their own."""
    with start(commands, **environment) as process:
        return finish(process, commands)


def error_line(done: Finished) -> str:
    """What the command says went wrong, which is one line, below those of its progress."""
    *progress, last = done.err.splitlines()
    assert all(line.startswith("neoscope: ") for line in progress), done.err
    assert not any("error" in line for line in progress), done.err
    assert last.startswith("neoscope: error: "), done.err
    assert TOKEN not in done.err + done.out
    return last.removeprefix("neoscope: error: ")


def loaded(place: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((place / name).read_bytes()))


def digests(place: Path) -> dict[str, str]:
    """The digest of every array of a run, token ids and lengths among them."""
    return {
        name: array["digest"] for name, array in loaded(place, "manifest.json")["arrays"].items()
    }


# What is on the Hub


def write_rows(path: Path, rows: list[tuple[str, str]]) -> None:
    """A Parquet file of (id, text) with FineWeb's other columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(
        {
            "text": [text for _, text in rows],
            "id": [name for name, _ in rows],
            "dump": ["CC-MAIN-2013-20"] * len(rows),
            "url": ["http://example.org/"] * len(rows),
            "date": ["2013-05-18T05:48:54Z"] * len(rows),
            "file_path": ["s3://commoncrawl/example.warc.gz"] * len(rows),
            "language": ["en"] * len(rows),
            "language_score": [0.97] * len(rows),
            "token_count": [1] * len(rows),
        }
    )
    pyarrow.parquet.write_table(table, path)


def change_weights(folder: Path, **changed: slice | None) -> None:
    """Rewrite the weights with one tensor cut to a slice, or left out."""
    weights = load_file(folder / "model.safetensors")
    for name, part in changed.items():
        tensor = weights.pop(name.replace("__", "."))
        if part is not None:
            weights[name.replace("__", ".")] = tensor[part].copy()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """The repositories, good and bad."""
    root = tmp_path_factory.mktemp("hub")

    def model(name: str) -> Path:
        return Path(shutil.copytree(small_model, root / "models" / "acme" / name))

    tiny = model("tiny")
    (tiny / "flax_model.msgpack").write_bytes(b"of no use to neoscope")
    for name in ("tiny-gated", "tiny-private", "down", "unwell", "halting"):
        model(name)
    layer = "transformer__h__1__mlp__c_fc__weight"
    change_weights(model("lacking"), **{layer: None})
    change_weights(model("misshapen"), **{layer: slice(8)})
    cut = model("cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    (model("weightless") / "model.safetensors").unlink()
    pickled = model("pickled")
    weights = load_file(tiny / "model.safetensors")
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    torch.save(tensors, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    change_config(model("t5"), model_type="t5")
    change_config(model("wrong-type"), hidden_size="sixteen")
    (model("no-json") / "config.json").write_text("{")
    bare = model("no-vocabulary")
    (bare / "tokenizer.json").unlink()
    (bare / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    (model("odd-vocabulary") / "tokenizer.json").write_text("{}")
    larger = model("larger-vocabulary")
    tokenizer = json.loads((larger / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["neoscope"] = 512
    (larger / "tokenizer.json").write_text(json.dumps(tokenizer))

    def dataset(name: str) -> Path:
        return root / "datasets" / "acme" / name

    for name in ("web", "web-gated", "web-private", "web-public", "down", "mute", "halting"):
        data = dataset(name) / "data"
        write_rows(data / "000.parquet", DOCUMENTS)
        write_rows(data / "001.parquet", [("<urn:uuid:later>", "later")])
        write_rows(data / "002.parquet", [("<urn:uuid:last>", "last")])
    for name in ("data/default", "small/train", "small/test"):
        rows = [(f"<urn:uuid:{Path(name).name}>", "word " * 400)]
        write_rows(dataset("configured") / f"{name}.parquet", rows)
    (dataset("configured") / "README.md").write_text(CONFIGS)
    dataset("damaged").mkdir()
    (dataset("damaged") / "000.parquet").write_bytes(b"PAR1 and nothing of the kind")
    return root


@pytest.fixture(scope="module")
def hub(folder: Path, no_settings_of_the_user: None) -> Iterator[FakeHub]:
    with serving(folder, *FAULTS) as hub:
        hub.gated = {
            "models/acme/tiny": TOKEN,
            "models/acme/tiny-gated": "hf_another",
            "datasets/acme/web-gated": "hf_another",
        }
        hub.private = {
            "datasets/acme/web": TOKEN,
            "models/acme/tiny-private": "hf_another",
            "datasets/acme/web-private": "hf_another",
        }
        yield hub


@pytest.fixture(scope="module", autouse=True)
def no_settings_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [*os.environ]:
            if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")):
                patch.delenv(name)
        patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        if sys.dont_write_bytecode:  # else each start compiles the libraries, for ten seconds
            patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
            patch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("bytecode")))
        yield


@pytest.fixture(scope="module")
def environment(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a user with a token and an empty cache, who can reach the Hub."""
    home = tmp_path_factory.mktemp("home")
    return {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_TOKEN": TOKEN}


# A run that takes everything from the Hub


@dataclass(frozen=True)
class Run:
    """A run that was made, and what it took from the Hub: requests, commits and bytes by file."""

    place: Path
    done: Finished
    commits: dict[str, str]
    sent: dict[str, int]
    sizes: dict[str, int]


@pytest.fixture(scope="module")
def run(hub: FakeHub, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("runs") / "run"
    # A folder of the data set's name, where the command is started, is not the data set.
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_rows(elsewhere / "acme" / "web" / "data" / "000.parquet", [("wrong", "wrong " * 400)])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(elsewhere)
        done = neoscope(
            "run", place, "--model", "acme/tiny", "--dataset", "acme/web", *SIZE, **environment
        )
    assert done.code == 0, done.err
    repositories = ("models/acme/tiny", "datasets/acme/web")
    files = {f"{name}/{file}": (name, file) for name in repositories for file in hub.files(name)}
    return Run(
        place,
        done,
        {name: hub.sha(name) for name in repositories},
        {path: hub.sent(*file) for path, file in files.items()},
        {path: (hub.folder / path).stat().st_size for path in files},
    )


def test_a_run_from_the_hub_says_which_commits_it_is_of(run: Run) -> None:
    for document in ("run.json", "manifest.json"):
        said = loaded(run.place, document)
        assert said["model"]["revision"] == run.commits["models/acme/tiny"]
        assert said["tokenizer"]["revision"] == run.commits["models/acme/tiny"]
        assert said["text"]["revision"] == run.commits["datasets/acme/web"]
        assert said["model"]["weights"] == "pretrained"


def test_the_manifest_lists_the_documents_their_tokens_and_where_the_last_is_cut(
    run: Run, small_model: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(small_model / "tokenizer.json"))
    expected: list[dict[str, Any]] = []
    room = SEQUENCES * POSITIONS
    for name, text in DOCUMENTS:
        tokens = len(tokenizer.encode(text).ids)
        used = min(tokens, room)
        expected.append({"id": name, "tokens": tokens, "used": used, "partition": 0})
        room -= used
        if not room:
            break
    assert 0 < expected[-1]["used"] < expected[-1]["tokens"], "the last document is to be cut"
    text = loaded(run.place, "manifest.json")["text"]
    assert text["documents"] == expected
    assert text["document_count"] == len(expected)
    assert text["cut"] == expected[-1:]


def test_files_of_the_data_set_that_are_not_needed_are_not_fetched(run: Run) -> None:
    assert run.sent["datasets/acme/web/data/000.parquet"] > 0
    assert run.sent["datasets/acme/web/data/001.parquet"] == 0
    assert run.sent["datasets/acme/web/data/002.parquet"] == 0


def test_no_more_of_the_model_is_fetched_than_is_needed_and_that_once(run: Run) -> None:
    weights = "models/acme/tiny/model.safetensors"
    assert run.sent[weights] == run.sizes[weights]
    assert run.sent["models/acme/tiny/flax_model.msgpack"] == 0


def test_the_token_opens_what_is_not_for_everybody_and_is_shown_and_stored_nowhere(
    run: Run, hub: FakeHub, environment: dict[str, str]
) -> None:
    assert any(request.token == TOKEN for request in hub.requests)
    assert not [
        request for request in hub.requests if request.token and request.host == "localhost"
    ]
    assert TOKEN not in run.done.out + run.done.err
    files = [
        path
        for root in (run.place, Path(environment["HF_HOME"]))
        for path in root.rglob("*")
        if path.is_file()
    ]
    assert len(files) > 20
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_a_local_folder_with_the_same_files_gives_the_same_arrays(
    run: Run, ended: dict[str, Finished], places: Path
) -> None:
    assert ended["local"].code == 0, ended["local"].err
    assert digests(places / "local") == digests(run.place)
    assert loaded(places / "local", "manifest.json")["model"]["revision"] is None


def unfinished(place: Path, whole: Path) -> Path:
    """A copy of a run as it is before its first record, with only its claim."""
    shutil.copytree(
        whole, place, ignore=shutil.ignore_patterns("manifest.json", "records", "*.zarr")
    )
    return place


def test_an_unfinished_run_goes_on_with_the_commits_of_its_claim_although_main_has_moved(
    run: Run,
    hub: FakeHub,
    environment: dict[str, str],
    places: Path,
    tmp_path: Path,
) -> None:
    model, data = (hub.folder / name for name in run.commits)
    change_weights(model, transformer__h__1__mlp__c_fc__weight=slice(None, None, -1))
    write_rows(data / "data" / "000.parquet", [("<urn:uuid:new>", "new " * 400)])
    hub.publish()
    assert all(hub.sha(name) != commit for name, commit in run.commits.items())

    place = unfinished(places / "unfinished", run.place)
    arguments = ("--model", "acme/tiny", "--dataset", "acme/web", *SIZE)
    done = neoscope("run", place, *arguments, **environment | {"HF_HOME": str(tmp_path)})
    assert done.code == 0, done.err
    assert digests(place) == digests(run.place)
    said = loaded(place, "manifest.json")
    assert said["model"]["revision"] == run.commits["models/acme/tiny"]
    assert said["text"] == loaded(run.place, "manifest.json")["text"]


# Many commands in one process, each at a place of its own


def command(place: Path, *arguments: object) -> list[object]:
    return ["run", place, *arguments, *SIZE]


MODELS = {
    "no such repository": ("absent", "is not on the Hub"),
    "not for everybody": ("tiny-private", "is not on the Hub, or not for everybody"),
    "gated": ("tiny-gated", "is gated: ask for access on its page"),
    "not a decoder": ("t5", "is a t5, which transformers has no decoder of"),
    "no JSON for a configuration": ("no-json", "is not a valid JSON file"),
    "a configuration of odd types": ("wrong-type", "its files are damaged"),
    "no weights": ("weightless", "has no weights: it has no file named model.safetensors, "),
    "weights without a tensor": (
        "lacking",
        "1 are missing or of another shape, first transformer.h.1",
    ),
    "weights of another shape": (
        "misshapen",
        "1 are missing or of another shape, first transformer.h.1",
    ),
    "weights cut short": ("cut", "its files are damaged"),
}
TOKENIZERS = {
    "no vocabulary": ("no-vocabulary", "has no vocabulary: is its tokenizer.json there?"),
    "a vocabulary of no known form": ("odd-vocabulary", "its files are damaged"),
    "too large for the model": ("larger-vocabulary", "does not fit the model"),
    "no such tokenizer": ("absent", "is not on the Hub"),
}
DATASETS = {
    "no such data set": (["acme/absent"], "is not on the Hub"),
    "data not for everybody": (["acme/web-private"], "is not on the Hub, or not for everybody"),
    "gated data": (["acme/web-gated"], "is gated: ask for access on its page"),
    "no such revision": (
        ["acme/web-public", "--dataset-revision", "v9"],
        "has no revision v9: give a branch, tag or commit",
    ),
    "no such configuration": (
        ["acme/configured", "--dataset-config", "large"],
        "Available: ['default', 'small']",
    ),
    "no such split": (
        ["acme/configured", "--dataset-split", "validation"],
        "Available splits: ['train']",
    ),
    "no such column": (["acme/web-public", "--text-column", "words"], "has no column 'words'"),
    "no Parquet": (["acme/damaged"], "is not a parquet file"),
    "a folder": (["./acme"], "is no name on the Hub: give local files with --text"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("places")


@pytest.fixture(scope="module")
def ended(
    run: Run, hub: FakeHub, environment: dict[str, str], small_model: Path, places: Path
) -> dict[str, Finished]:
    """How each of many commands ended that can reach the Hub."""
    old = hub.sha("datasets/acme/configured")
    hub.tag("datasets/acme/configured", "v1")
    rows = [("<urn:uuid:changed>", "changed " * 400)]
    write_rows(hub.folder / "datasets" / "acme" / "configured" / "small" / "test.parquet", rows)
    hub.publish()
    assert hub.sha("datasets/acme/configured") != old
    data = hub.folder / "datasets" / "acme" / "web" / "data"
    local = ["--model", small_model]
    given: dict[str, list[object]] = {
        "local": [*local, *(part for file in sorted(data.iterdir()) for part in ("--text", file))],
        "configured": [
            *(*local, "--dataset", "acme/configured", "--dataset-config", "small"),
            *("--dataset-split", "test", "--dataset-revision", "v1"),
        ],
        "pickled": ["--model", "acme/pickled", "--dataset", "sample"],
        "model revision": ["--model", "acme/tiny", "--model-revision", "v9", "--dataset", "sample"],
        "streamed": [*local, "--dataset", "acme/web-public"],
        "too short": [*local, "--dataset", "acme/web-public", "--batches", 99],
        "too short, no arrays": [
            *(*local, "--dataset", "acme/web-public", "--batches", 99, "--no-arrays"),
        ],
        "no such folder": ["--model", "./nowhere", "--dataset", "sample"],
        "revision of a folder": [*local, "--model-revision", "v9", "--dataset", "sample"],
        "down": ["--model", "acme/down", "--dataset", "sample"],
        "down dataset": [*local, "--dataset", "acme/down"],
        "unwell": ["--model", "acme/unwell", "--dataset", "sample"],
    }
    for case, (name, _) in MODELS.items():
        source = ["--model", f"acme/{name}", "--tokenizer", small_model]
        given[case] = [*source, "--dataset", "sample"]
    for case, (name, _) in TOKENIZERS.items():
        given[case] = [*local, "--tokenizer", f"acme/{name}", "--dataset", "sample"]
    for case, (arguments, _) in DATASETS.items():
        given[case] = [*local, "--dataset", *arguments]
    commands = {case: command(places / case, *arguments) for case, arguments in given.items()}
    return each(commands, **environment)


def test_configuration_split_and_revision_of_a_data_set_are_those_asked_for(
    ended: dict[str, Finished], hub: FakeHub, places: Path
) -> None:
    assert ended["configured"].code == 0, ended["configured"].err
    text = loaded(places / "configured", "manifest.json")["text"]
    assert [document["id"] for document in text["documents"]] == ["<urn:uuid:test>"]
    assert (text["config"], text["split"]) == ("small", "test")
    assert text["revision"] == hub.repositories["datasets/acme/configured"].refs["v1"]
    assert text["revision"] != hub.sha("datasets/acme/configured")
    assert loaded(places / "configured", "run.json")["text"]["revision"] == text["revision"]


def test_weights_that_are_no_safetensors_are_read_and_nobody_is_asked_to_convert_them(
    run: Run, ended: dict[str, Finished], hub: FakeHub, places: Path
) -> None:
    assert ended["pickled"].code == 0, ended["pickled"].err
    mine, theirs = (loaded(place, "manifest.json") for place in (places / "pickled", run.place))
    assert mine["model"]["digest"] == theirs["model"]["digest"]
    assert not [seen.path for seen in hub.requests if "commits" in seen.path]


@pytest.mark.parametrize("case", [*MODELS, *TOKENIZERS, *DATASETS])
def test_what_no_retry_cures_is_an_error_of_the_input(
    ended: dict[str, Finished], places: Path, case: str
) -> None:
    _, words = (MODELS | TOKENIZERS | DATASETS)[case]
    assert ended[case].code == 3, ended[case].err
    assert words in error_line(ended[case])
    assert not (places / case / "run.json").exists(), "the place is claimed by what cannot be run"


def test_of_a_data_set_that_ends_what_is_whole_is_recorded(
    ended: dict[str, Finished], places: Path
) -> None:
    place = places / "too short"
    whole = len([*(place / "records").iterdir()])
    assert whole > 1
    assert ended["too short"].code == 3
    assert error_line(ended["too short"]) == (
        f"the text fills {whole} batches of 192 tokens: use --batches {whole}, and give another "
        f"output, or first: neoscope delete {place}"
    )


def test_of_a_data_set_that_ends_inside_a_record_nothing_of_it_is_computed(
    ended: dict[str, Finished], places: Path
) -> None:
    whole = len([*(places / "too short" / "records").iterdir()])
    said = error_line(ended["too short, no arrays"])
    assert said == f"the text fills {whole} batches of 192 tokens: use --batches {whole}"
    assert not [*(places / "too short, no arrays").rglob("*.json")]


def test_a_revision_of_the_model_that_is_not_there(ended: dict[str, Finished]) -> None:
    assert ended["model revision"].code == 3
    assert "acme/tiny has no revision v9" in error_line(ended["model revision"])


def test_a_model_in_a_folder_that_is_not_there(ended: dict[str, Finished]) -> None:
    assert ended["no such folder"].code == 3
    assert "./nowhere is no folder here" in error_line(ended["no such folder"])


def test_a_local_folder_has_no_revisions(ended: dict[str, Finished]) -> None:
    assert ended["revision of a folder"].code == 2
    assert "which has no revision v9: drop it" in error_line(ended["revision of a folder"])


@pytest.mark.parametrize("case", ["down", "down dataset", "unwell"])
def test_a_hub_that_is_unwell_may_be_asked_again_later(
    ended: dict[str, Finished], case: str
) -> None:
    assert ended[case].code == 75
    said = error_line(ended[case])
    assert "answers 503" in said
    assert "try again when the Hub can be reached, or give" in said


# Without the Hub, or with one that stops answering


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local text file."""
    path = tmp_path_factory.mktemp("text") / "documents.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in DOCUMENTS))
    return path


@dataclass(frozen=True)
class DeadEnd:
    """A Hub that cannot be spoken to, what is said of it, and how commands ended."""

    said: str
    ended: dict[str, Finished]


@pytest.fixture(scope="module", params=["refused", "unresolvable", "stalled", "offline"])
def dead_end(
    request: pytest.FixtureRequest,
    ended: dict[str, Finished],  # one of which has filled the cache
    environment: dict[str, str],
    small_model: Path,
    documents: Path,
    places: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[DeadEnd]:
    folder = tmp_path_factory.mktemp(request.param)
    unfinished(folder / "claimed", places / "streamed")
    commands = {
        name: command(folder / name, *arguments)
        for name, arguments in {
            "cached": ("--model", "acme/pickled", "--text", documents),
            "model": ("--model", "acme/elsewhere", "--text", documents),
            "dataset": ("--model", small_model, "--dataset", "acme/web-public"),
            "claimed": ("--model", small_model, "--dataset", "acme/web-public"),
        }.items()
    }
    silent = Fault("")
    with refusing() as refused, serving(folder, silent) as stalled:
        said, settings = {
            "refused": ("does not answer ([Errno 111] ", {"HF_ENDPOINT": refused}),
            "unresolvable": ("does not answer (", {"HF_ENDPOINT": "http://hub.invalid"}),
            "stalled": ("does not answer (timed out)", {"HF_ENDPOINT": stalled.endpoint}),
            "offline": ("HF_HUB_OFFLINE is set", {"HF_HUB_OFFLINE": "1"}),
        }[request.param]
        yield DeadEnd(said, each(commands, **environment | settings))


def test_a_model_that_is_in_the_cache_needs_no_hub(dead_end: DeadEnd) -> None:
    done = dead_end.ended["cached"]
    assert done.code == 0, done.err


@pytest.mark.parametrize("what", ["model", "dataset", "claimed"])
def test_without_hub_and_cache_one_line_says_what_to_do(dead_end: DeadEnd, what: str) -> None:
    done = dead_end.ended[what]
    assert done.code == 75
    said = error_line(done)
    assert dead_end.said in said
    instead = (
        "a local folder" if what == "model" else "local files with --text, or --dataset sample"
    )
    assert f"try again when the Hub can be reached, or give {instead}" in said


@pytest.mark.skipif(not UNWRITABLE.parent.is_dir(), reason="needs /sys")
def test_only_what_is_kept_in_the_cache_needs_a_folder_that_can_be_written(
    hub: FakeHub, small_model: Path, tmp_path: Path
) -> None:
    local = ("--model", small_model)
    commands = {
        name: command(tmp_path / name, *arguments)
        for name, arguments in {
            "sample": (*local, "--dataset", "sample"),
            "streamed": (*local, "--dataset", "acme/web-public"),
            "model": ("--model", "acme/pickled", "--dataset", "sample"),
            "data with a card": (*local, "--dataset", "acme/configured"),
            "gated": ("--model", "acme/tiny", "--dataset", "sample"),
            "absent": ("--model", "acme/absent", "--dataset", "sample"),
        }.items()
    }
    # Without a token, so that the Hub answers 401 rather than 403 and 404 to what it does not open.
    ended = each(commands, HF_ENDPOINT=hub.endpoint, HF_HOME=str(UNWRITABLE))
    assert ended["sample"].code == 0, ended["sample"].err
    assert ended["streamed"].code == 0, ended["streamed"].err
    for name in ("model", "data with a card"):
        assert ended[name].code == 3
        assert "set HF_HOME to a folder that can be written" in error_line(ended[name])
    for name, words in (("gated", "is gated"), ("absent", "is not on the Hub")):
        assert ended[name].code == 3
        assert words in error_line(ended[name])


@pytest.fixture(scope="module", autouse=True)
def halting(
    hub: FakeHub, small_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[str], Commands]]:
    """Commands that meet a Hub that falls silent later on. They mostly sleep, and do so beside the
    other tests: each request is tried anew for half a minute, and reading a data set twice that."""
    folder = tmp_path_factory.mktemp("halting")
    local = ("--model", small_model)
    commands = {
        "the weights": command(folder / "0", "--model", "acme/halting", "--dataset", "sample"),
        "the list of the files": command(folder / "1", *local, "--dataset", "acme/mute"),
        "the data set": command(folder / "2", *local, "--dataset", "acme/halting"),
    }
    home = tmp_path_factory.mktemp("home")
    settings = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HOME": str(home), "HF_ENDPOINT": hub.endpoint}
    with start(commands, **settings) as process:
        yield process, commands
        process.kill()


def test_a_hub_that_falls_silent_is_not_waited_for_for_ever(
    halting: tuple[subprocess.Popen[str], Commands],
) -> None:
    for what, done in finish(*halting).items():
        assert done.code == 75, f"{what}: {done.err}"
        assert "the Hub does not answer" in error_line(done)
