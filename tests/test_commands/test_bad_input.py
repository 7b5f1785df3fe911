"""Bad input: one line on standard error that names the value, an exit code, and nothing half-done."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers

from neoscope.storage.store import open_store
from support.command import BUCKET, Finished, invoke, neoscope


@dataclass(frozen=True)
class Bad:
    """A call that must fail. `{name}` in an argument or variable stands for one of `things`."""

    arguments: str
    code: int
    word: str
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.code} {self.word}"


MODEL = "--model {model}"
SAMPLE = "--dataset sample --sequences 4 --positions 16"
RUN = f"run {{place}} {MODEL} {SAMPLE}"
TEXT = f"run {{place}} {MODEL} --sequences 4 --positions 16"

USAGE = [
    Bad("run", 2, "OUTPUT"),
    Bad("run {place} more", 2, "more"),
    Bad("frobnicate {place}", 2, "frobnicate"),
    Bad(f"{RUN} --frobnicate", 2, "--frobnicate"),
    Bad(f"{RUN} --batches", 2, "--batches"),
    Bad(f"{RUN} --batches 0", 2, "--batches is 0"),
    Bad(f"{RUN} --batches -3", 2, "--batches is -3"),
    Bad(f"{RUN} --batches many", 2, "'many'"),
    Bad(f"{RUN} --batches 1.5", 2, "'1.5'"),
    Bad(f"{RUN} --sequences 0", 2, "--sequences is 0"),
    Bad(f"{RUN} --positions 0", 2, "--positions is 0"),
    Bad(f"{RUN} --partitions 0", 2, "--partitions is 0"),
    Bad(f"{RUN} --partitions 2 --partition 2", 2, "--partition 2 is not one of the 2"),
    Bad(f"{RUN} --partition first", 2, "--partition first"),
    Bad(f"{RUN} --partition auto", 2, "JOB_COMPLETION_INDEX"),
    Bad(f"{RUN} --partition auto", 2, "=7", {"JOB_COMPLETION_INDEX": "7"}),
    Bad(f"{RUN} --partition auto", 2, "RANK=2", {"RANK": "2", "WORLD_SIZE": "2"}),
    Bad(f"{RUN} --partition auto --workers 0", 2, "0 is not in the range"),
    Bad(f"{RUN} --workers 2", 2, "--workers 2 goes with --partition auto"),
    Bad(f"{RUN} --weights trained", 2, "'trained'"),
    Bad(f"{RUN} --seed 1", 2, "--seed 1 goes with --weights random"),
    Bad(f"{RUN} --weights random --seed -1", 2, "-1"),
    Bad(f"{RUN} --separator comma", 2, "'comma'"),
    Bad(f"{RUN} --precision float64", 2, "'float64'"),
    Bad(f"{RUN} --store-dtype bfloat16", 2, "'bfloat16'"),
    Bad(f"{RUN} --compression zip", 2, "'zip'"),
    Bad(f"{RUN} --forward slow", 2, "'slow'"),
    Bad(f"{RUN} --device tpu", 2, "'tpu'"),
    Bad(
        f"{RUN} --device mps",
        2,
        "does not compute on Apple's GPU, where it was never tried: use cpu",
    ),
    Bad(f"{RUN} --device cuda:first", 2, "'cuda:first'"),
    Bad(f"{RUN} --text {{good}}", 2, "--text and --dataset do not fit"),
    Bad(f"{TEXT} --text {{good}} --dataset-config en", 2, "--dataset-config"),
    Bad(f"{RUN} --dataset-split test", 2, "--dataset-split"),
    Bad(f"{RUN} --dataset-revision v1", 2, "--dataset-revision"),
    Bad(f"{RUN} --model-revision main", 2, "has no revision main"),
    Bad(f"run {{place}} --weights random --model-revision v1 {SAMPLE}", 2, "--model-revision"),
    Bad(f"{TEXT} --text {{good}} --text {{parquet}}", 2, "json, parquet"),
    Bad(f"{TEXT} --text {{folder}}/data.csv", 2, "data.csv: unknown file type"),
    Bad(f"{TEXT} --text {{folder}}", 2, "unknown file type; use .jsonl"),
    Bad(f"{RUN}", 2, "'many'", {"NEOSCOPE_BATCHES": "many"}),
    Bad(f"{RUN}", 2, "'half'", {"NEOSCOPE_STORE_DTYPE": "half"}),
    Bad(f"run gs://bucket/prefix {MODEL}", 2, "gs://bucket/prefix"),
    Bad(f"run s3://bucket {MODEL}", 2, "no prefix"),
    Bad(f"run s3:///prefix {MODEL}", 2, "no bucket"),
    Bad("delete {finished}", 2, "--yes"),
]

TEXTS = [
    Bad(f"{TEXT} --text {{folder}}/gone.jsonl", 3, "gone.jsonl: No such file"),
    Bad(f"{TEXT} --text {{directory}}", 3, "directory.jsonl: Is a directory"),
    Bad(f"{TEXT} --text {{empty}}", 3, "empty.jsonl is empty"),
    Bad(f"{TEXT} --text {{blank}}", 3, "the text has too few tokens, 0 for a batch of 64"),
    Bad(f"{TEXT} --text {{short}}", 3, "too few tokens"),
    Bad(f"{TEXT} --text {{broken}}", 3, "broken.jsonl"),
    Bad(f"{TEXT} --text {{latin}}", 3, "utf-8"),
    Bad(f"{TEXT} --text {{latin_text}}", 3, "utf-8"),
    Bad(f"{TEXT} --text {{cut}}", 3, "cut.jsonl.gz"),
    Bad(f"{TEXT} --text {{no_gzip}}", 3, "no_gzip.jsonl.gz"),
    Bad(f"{TEXT} --text {{no_parquet}}", 3, "no_parquet.parquet"),
    Bad(f"{TEXT} --text {{cut_parquet}}", 3, "cut_parquet.parquet"),
    Bad(f"{TEXT} --text {{null}}", 3, "document 0 of null.jsonl has nothing"),
    Bad(f"{TEXT} --text {{number}}", 3, "document 0 of number.jsonl has a int, '5'"),
    Bad(f"{TEXT} --text {{good}} --text-column body", 3, "no column 'body'"),
    Bad(f"{TEXT} --text {{good}} --text {{null}} --batches 99", 3, "good.jsonl, null.jsonl"),
    Bad(
        f"{TEXT} --text {{good}} --partitions 2",
        3,
        "good.jsonl is one file; for 2 partitions split",
    ),
    Bad(f"{TEXT} --text {{parquet}} --partitions 2", 3, "the text is one file: use --partitions 1"),
    Bad(f"{RUN} --partitions 2", 3, "the sample is one file; for 2 partitions"),
    Bad(f"run {{place}} {MODEL} --dataset sample --sequences 9999 --positions 64", 3, "too few"),
    Bad(f"run {{place}} {MODEL} --positions 8 --dataset {{folder}}/gone", 3, "gone"),
]

MODELS = [
    Bad(f"run {{place}} --model {{folder}}/gone {SAMPLE}", 3, "gone"),
    Bad(f"run {{place}} --model ./gone {SAMPLE}", 3, "./gone"),
    Bad(f"run {{place}} --model {{nothing}} {SAMPLE}", 3, "nothing"),
    Bad(f"run {{place}} --model {{t5}} {SAMPLE}", 3, "is a t5, which"),
    Bad(f"run {{place}} --model {{no_weights}} {SAMPLE}", 3, "no_weights"),
    Bad(f"run {{place}} --model {{lacking}} {SAMPLE}", 3, "transformer.h.1.mlp.c_fc.weight"),
    Bad(f"run {{place}} --model {{other_shape}} {SAMPLE}", 3, "other_shape"),
    Bad(f"run {{place}} --model {{cut_weights}} {SAMPLE}", 3, "cut_weights"),
    Bad(f"run {{place}} --model {{broken_config}} {SAMPLE}", 3, "broken_config"),
    Bad(f"run {{place}} --model {{no_tokenizer}} {SAMPLE}", 3, "no_tokenizer"),
    Bad(f"{RUN} --tokenizer {{folder}}/gone", 3, "gone"),
    Bad(f"{RUN} --tokenizer {{nothing}}", 3, "nothing"),
    Bad(f"{RUN} --tokenizer {{large_tokenizer}}", 3, "does not fit the model: it has 600 tokens"),
    Bad(f"{RUN} --tokenizer {{no_eos}} --separator eos", 3, "no end-of-text token"),
    Bad(f"{RUN} --tokenizer {{no_eos}} --bos", 3, "no beginning-of-sequence token"),
    Bad(f"run {{place}} --model {{relu}} {SAMPLE}", 3, "'relu': use --forward reference"),
    Bad(f"{RUN} --sequences 1 --positions 65", 3, "--positions 65 is longer than the model's 64"),
    Bad(f"run {{place}} --model {{nan}} {SAMPLE}", 5, "not finite"),
    Bad(f"run {{place}} --model {{huge}} {SAMPLE} --store-dtype float16", 5, "--store-dtype"),
]
if not torch.cuda.is_available():
    MODELS.append(Bad(f"{RUN} --device cuda", 3, "--device cuda: torch finds no GPU"))

PLACES = [
    Bad(f"run {{file}} {MODEL} {SAMPLE}", 3, "cannot make the folder"),
    Bad(f"run {{file}}/run {MODEL} {SAMPLE}", 3, "cannot make the folder"),
    Bad(f"run s3://no-such-bucket/run {MODEL} {SAMPLE}", 3, "bucket no-such-bucket does not exist"),
    Bad(f"run s3://Bad_Bucket!/run {MODEL} {SAMPLE}", 3, "Bad_Bucket!"),
    Bad(f"run {{s3}} {MODEL} {SAMPLE}", 3, "s3:ListBucket", {"AWS_SECRET_ACCESS_KEY": "wrong"}),
    Bad(f"run {{s3}} {MODEL} {SAMPLE}", 3, "s3:ListBucket", {"AWS_ACCESS_KEY_ID": "nobody"}),
    Bad(f"run {{s3}} {MODEL} {SAMPLE}", 3, "nobody", {"AWS_PROFILE": "nobody"}),
    Bad(f"run {{s3}} {MODEL} {SAMPLE} --endpoint-url minio:9000", 2, "minio:9000 is no URL"),
    Bad(f"run {{s3}} {MODEL} {SAMPLE}", 2, "minio is no URL", {"NEOSCOPE_ENDPOINT_URL": "minio"}),
    Bad(f"run {{s3}} {MODEL} {SAMPLE} --endpoint-url {{refused}}", 75, "does not answer"),
    Bad(f"run {{finished}} {MODEL} {SAMPLE} --batches 2", 4, "batches was 1, now 2"),
    Bad(f"run {{finished}} --model {{nan}} {SAMPLE}", 4, "model was"),
    Bad("delete {folder} --yes", 3, "there is no run at"),
    Bad("delete {folder}/gone --yes", 3, "no such folder"),
    Bad("delete s3://no-such-bucket/run --yes", 3, "no-such-bucket"),
    Bad("delete {s3} --yes", 3, "there is no run at"),
]

TABLE = [*USAGE, *TEXTS, *MODELS, *PLACES]
# The same as processes of their own: nothing else is said there either, by any library.
PROCESSES = [
    Bad(f"{TEXT} --text {{broken}}", 3, "broken.jsonl"),
    Bad(f"{TEXT} --text {{cut_parquet}}", 3, "cut_parquet.parquet"),
    Bad(f"run {{place}} --model {{lacking}} {SAMPLE}", 3, "transformer.h.1.mlp.c_fc.weight"),
    Bad(f"run {{s3}} {MODEL} {SAMPLE}", 3, "s3:ListBucket", {"AWS_SECRET_ACCESS_KEY": "wrong"}),
    Bad(f"run {{finished}} {MODEL} {SAMPLE} --batches 2", 4, "batches was 1, now 2"),
    Bad(f"{RUN} --weights trained", 2, "'trained'"),
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Text files by name, one good and the others damaged in one way each."""
    folder = tmp_path_factory.mktemp("texts")
    rows = [{"id": f"d{n}", "text": f"document {n} with a few words in it"} for n in range(40)]
    good = "".join(json.dumps(row) + "\n" for row in rows).encode()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "parquet.parquet")
    parquet = (folder / "parquet.parquet").read_bytes()
    bodies = {
        "good.jsonl": good,
        "empty.jsonl": b"",
        "blank.jsonl": b"\n\n\n",
        "short.jsonl": b'{"text": "only a few words"}\n',
        "broken.jsonl": good[:300] + b'{"id": "x", "text": }\n',
        "latin.jsonl": '{"text": "café"}\n'.encode("latin-1"),
        "latin_text.txt": "café au lait".encode("latin-1"),
        "cut.jsonl.gz": gzip.compress(good)[:-20],
        "no_gzip.jsonl.gz": good,
        "no_parquet.parquet": b"PAR1 or so it says",
        "cut_parquet.parquet": parquet[: len(parquet) // 2],
        "null.jsonl": b'{"text": null}\n',
        "number.jsonl": b'{"text": 5}\n',
    }
    for name, body in bodies.items():
        (folder / name).write_bytes(body)
    (folder / "directory.jsonl").mkdir()
    return {path.name.partition(".")[0]: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def models(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models by name, one good and the others unusable in one way each."""
    root = tmp_path_factory.mktemp("models")
    weights = transformers.GPTNeoForCausalLM.from_pretrained(small_model)

    def copy(name: str) -> Path:
        shutil.copytree(small_model, root / name)
        return root / name

    def changed(name: str, parameter: str, value: float) -> None:
        model = transformers.GPTNeoForCausalLM.from_pretrained(small_model)
        model.get_parameter(parameter).data.fill_(value)
        model.save_pretrained(copy(name))

    changed("nan", "transformer.h.1.mlp.c_fc.bias", float("nan"))
    changed("huge", "transformer.h.1.mlp.c_fc.bias", 1e6)
    (root / "nothing").mkdir()
    edit(copy("t5") / "config.json", model_type="t5")
    (copy("no_weights") / "model.safetensors").unlink()
    state = weights.state_dict()
    del state["transformer.h.1.mlp.c_fc.weight"]
    weights.save_pretrained(copy("lacking"), state_dict=state)
    edit(copy("relu") / "config.json", activation_function="relu")
    edit(copy("other_shape") / "config.json", hidden_size=32)
    cut = copy("cut_weights") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    (copy("broken_config") / "config.json").write_text("{ this is not JSON")
    for path in copy("no_tokenizer").glob("tokenizer*"):
        path.unlink()
    tokenizer = transformers.AutoTokenizer.from_pretrained(small_model)
    tokenizer.add_tokens([f"<extra {number}>" for number in range(88)])
    tokenizer.save_pretrained(root / "large_tokenizer")
    plain = transformers.PreTrainedTokenizerFast(tokenizer_file=str(small_model / "tokenizer.json"))
    plain.save_pretrained(root / "no_eos")
    return {"model": small_model, **{path.name: path for path in root.iterdir()}}


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture(scope="module")
def refused() -> Iterator[str]:
    """An address at which nobody listens, and nobody will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="module")
def finished(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    url = tmp_path_factory.mktemp("finished") / "run"
    done = invoke("run", url, "--model", small_model, *SAMPLE.split())
    assert done.code == 0, done.err
    return url


@pytest.fixture
def things(
    texts: dict[str, Path],
    models: dict[str, Path],
    finished: Path,
    refused: str,
    s3_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, object]:
    """What the placeholders in the table stand for, and a place where nothing must be finished."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("not a folder")
    return {
        **texts,
        **models,
        "finished": finished,
        "refused": refused,
        "s3": s3_url,
        "place": tmp_path / "place",
        "folder": tmp_path / "folder",
        "file": tmp_path / "file",
    }


def call(bad: Bad, things: dict[str, object]) -> tuple[list[str], dict[str, str]]:
    arguments = [word.format_map(things) for word in bad.arguments.split()]
    return arguments, {name: v.format_map(things) for name, v in bad.environment.items()}


def assert_refused(bad: Bad, things: dict[str, object], done: Finished) -> None:
    """One line says why, and nothing that was there is changed or looks finished."""
    assert done.code == bad.code, done.err
    *before, line = done.err.splitlines()
    assert line.startswith("neoscope: error: ")
    assert bad.word in line
    assert not [other for other in before if not re.match(r"neoscope: (?!error)", other)], done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    place, s3 = Path(str(things["place"])), str(things["s3"])
    assert not [path for path in place.rglob("*") if path.name in ("manifest.json", "zarr.json")]
    assert not list(open_store(s3).objects())


@pytest.mark.parametrize("bad", TABLE, ids=str)
def test_bad_input_is_one_line_and_leaves_nothing_finished(
    bad: Bad, things: dict[str, object]
) -> None:
    before = (Path(str(things["finished"])) / "manifest.json").read_bytes()
    arguments, environment = call(bad, things)
    assert_refused(bad, things, invoke(*arguments, **environment))
    assert (Path(str(things["finished"])) / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("bad", PROCESSES, ids=str)
def test_as_a_process_of_its_own_it_says_nothing_else(bad: Bad, things: dict[str, object]) -> None:
    arguments, environment = call(bad, things)
    assert_refused(bad, things, neoscope(*arguments, **environment))


def test_the_table_is_long_and_has_every_exit_code_that_input_can_cause() -> None:
    assert len(TABLE) >= 40
    assert {bad.code for bad in TABLE} == {2, 3, 4, 5, 75}


def test_no_arguments_at_all_give_the_help() -> None:
    done = invoke()
    assert done.code == 2
    assert done.err.startswith("Usage: neoscope")
    assert "Exit codes:" in done.err


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["delete", "-h"]])
def test_help_is_no_error_and_run_has_the_exit_codes(arguments: list[str]) -> None:
    done = invoke(*arguments)
    assert (done.code, done.err) == (0, "")
    if arguments[0] == "run":
        for code in (0, 2, 3, 4, 5, 75, 130, 143):
            assert re.search(rf"\b{code}\b", done.out.partition("Exit codes:")[2])


def test_an_unknown_variable_is_warned_of_and_no_error(
    things: dict[str, object], small_run: list[str]
) -> None:
    place = things["place"]
    done = invoke("run", place, *small_run, NEOSCOPE_BATCHS="3", NEOSCOPE_BATCHES="1")
    assert done.code == 0
    warned = [line for line in done.err.splitlines() if "warning" in line]
    assert warned == [
        "neoscope: warning: NEOSCOPE_BATCHS is set in the environment, but neoscope has no such option"
    ]


def test_a_place_that_holds_something_else_is_not_touched(
    things: dict[str, object], small_run: list[str]
) -> None:
    """A file called run.json that is no claim."""
    folder = Path(str(things["folder"]))
    (folder / "run.json").write_text('{"name": "a package of mine"}')
    done = invoke("run", folder, *small_run)
    assert done.code == 5
    assert "run.json is damaged" in done.err
    assert [path.name for path in folder.iterdir()] == ["run.json"]


@pytest.mark.parametrize("key", ["run.json", "records/00000-00000001.json", "manifest.json"])
def test_a_damaged_document_of_a_run_is_a_failed_check(
    finished: Path, small_model: Path, tmp_path: Path, key: str
) -> None:
    url = tmp_path / "run"
    shutil.copytree(finished, url)
    if key.startswith("records"):
        for name in ("manifest.json", "rollups/00000.json"):
            (url / name).unlink()
    body = bytearray((url / key).read_bytes())
    body[len(body) // 2] ^= 1
    (url / key).write_bytes(bytes(body))
    done = invoke("run", url, "--model", small_model, *SAMPLE.split())
    assert done.code == 5
    assert f"{key} is damaged" in done.err


def test_nobody_made_a_bucket(endpoint: str) -> None:
    assert [
        bucket["Name"] for bucket in boto3.Session().client("s3").list_buckets()["Buckets"]
    ] == [BUCKET]
