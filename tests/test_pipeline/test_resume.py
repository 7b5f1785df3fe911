"""A run that is started again: finished, foreign, or broken off anywhere."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from neoscope import open_run
from neoscope.errors import InputError
from neoscope.text.documents import SAMPLE_FILE
from support.command import Finished, invoke
from support.making import (
    LAYERS,
    Run,
    arguments,
    group,
    long_text,
    nothing_finished,
    unfinish,
    values,
    words,
)
from support.places import body, dataset, listing


@pytest.fixture(scope="module")
def undisturbed(
    small_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], str]:
    """The arguments of a run that takes some seconds, and where it was made at one go."""
    folder = tmp_path_factory.mktemp("undisturbed")
    text = long_text(folder / "a.parquet", 400)
    given = arguments(small_model, dataset=None, text=text, sequences=2, positions=8, batches=200)
    assert invoke("run", folder / "run", *given).code == 0
    return given, str(folder / "run")


def test_a_second_start_says_that_all_is_there_and_changes_nothing(
    run: Run, small_model: Path
) -> None:
    before = listing(run.url)
    again = invoke("run", run.url, *arguments(small_model))
    assert again.code == 0
    assert "already holds this run" in again.err
    assert again.out.split("seconds:")[0] == run.done.out.split("seconds:")[0]
    assert listing(run.url) == before


def test_a_second_start_as_a_process_of_its_own_is_quick(run: Run, small_model: Path) -> None:
    """Nothing heavy is imported where nothing is to be computed."""
    code = (
        "import sys; from neoscope.commands.main import invoke; code = invoke(sys.argv[1:]);"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules], code)"
    )
    command = [sys.executable, "-c", code, "run", run.url, *arguments(small_model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[] 0", done.stderr


@pytest.mark.parametrize(
    ("option", "field"),
    [
        ({"batches": 3}, "batches was 2, now 3"),
        ({"positions": 12}, "positions was 24, now 12"),
        ({"separator": "eos"}, 'separator was "none", now "eos"'),
        ({"store_dtype": "float16"}, 'store_dtype was "float32", now "float16"'),
        ({"weights": "random"}, 'weights was "pretrained", now "random"'),
        ({"dataset": None, "text": SAMPLE_FILE}, "text was []"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_another_run_in_its_place_is_refused_and_named(
    run: Run, small_model: Path, option: dict[str, Any], field: str
) -> None:
    before = listing(run.url)
    refused = invoke("run", run.url, *arguments(small_model, **option))
    assert refused.code == 4
    assert field in refused.err
    assert listing(run.url) == before


def test_two_runs_of_one_spec_are_the_same_bytes_wherever_they_lie(
    run: Run, small_model: Path, tmp_path: Path
) -> None:
    other = str(tmp_path / "other")
    assert invoke("run", other, *arguments(small_model)).code == 0
    theirs = json.loads(body(other, "manifest.json"))
    assert theirs["content_digest"] == run.manifest["content_digest"]
    assert theirs["fingerprint"] == run.manifest["fingerprint"]
    assert set(listing(other)) == set(listing(run.url))
    for key in listing(other):
        if not key.startswith(("records/", "rollups/")) and key not in (
            "run.json",
            "manifest.json",
        ):
            assert body(other, key) == body(run.url, key), key


def test_random_weights_depend_on_the_seed_and_on_nothing_else(
    small_model: Path, tmp_path: Path
) -> None:
    found = {}
    for name, options in {
        "default": {},
        "zero": {"seed": "0"},
        "one": {"seed": 1},
    }.items():
        url = str(tmp_path / name)
        given = arguments(small_model, weights="random", batches=1, **options)
        assert invoke("run", url, *given).code == 0
        found[name] = Run(url, Finished(0, "", "")).manifest
    assert found["default"]["content_digest"] == found["zero"]["content_digest"]
    assert found["default"]["model"]["digest"] != found["one"]["model"]["digest"]
    for name in LAYERS:
        assert found["zero"]["arrays"][name]["digest"] != found["one"]["arrays"][name]["digest"]
    assert found["zero"]["tokens"] == found["one"]["tokens"]
    assert found["one"]["model"]["weights"] == "random"
    assert found["one"]["spec"]["seed"] == 1
    assert "RANDOM" in str(group(str(tmp_path / "one")).attrs["note"])


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "two files"])
def test_a_run_broken_off_after_any_batch_ends_as_an_undisturbed_one(
    small_model: Path, tmp_path: Path, kind: str
) -> None:
    """Broken off: as it was when that record had just been put."""
    paths = [long_text(tmp_path / "a.parquet")]
    if kind != "parquet":
        rows = pyarrow.parquet.read_table(paths[0]).to_pylist()
        halves = [rows] if kind == "jsonl" else [rows[:4], rows[4:]]
        paths = [tmp_path / f"{number}.jsonl" for number in range(len(halves))]
        for path, half in zip(paths, halves, strict=True):
            path.write_text("".join(json.dumps(row) + "\n" for row in half))
    count = 8
    given = [
        *arguments(small_model, dataset=None, batches=count),
        "--no-statistics",
        "--no-neurons",
    ]
    given += [word for path in paths for word in ("--text", str(path))]
    whole = str(tmp_path / "whole")
    assert invoke("run", whole, *given).code == 0
    expected = Run(whole, Finished(0, "", "")).manifest
    for recorded in (1, 4, 6):
        url = tmp_path / f"after-{recorded}"
        shutil.copytree(whole, url)
        unfinish(url, recorded)
        again = invoke("run", url, *given)
        assert again.code == 0, again.err
        found = json.loads(body(str(url), "manifest.json"))
        for part in ("tokens", "arrays", "text", "checks", "zarr"):
            assert found[part] == expected[part], f"{part} after {recorded}"
        assert found["content_digest"] == expected["content_digest"], f"after {recorded}"


def test_a_run_that_broke_off_and_broke_off_again_in_one_long_document_goes_on_rightly(
    small_model: Path, tmp_path: Path
) -> None:
    """Each start stores one batch more, and its record is all that the next one has to go by."""
    text = tmp_path / "long.jsonl"
    text.write_text(
        json.dumps({"text": words(40)}) + "\n" + json.dumps({"text": "once " + words(500)}) + "\n"
    )
    given = [
        *arguments(small_model, dataset=None, text=text, batches=5),
        "--no-statistics",
        "--no-neurons",
    ]
    whole, url = tmp_path / "whole", tmp_path / "run"
    assert invoke("run", whole, *given).code == 0
    for number in range(1, 6):
        assert invoke("run", url, *given).code == 0
        if number < 5:
            unfinish(url, number)
    for name in ("token_ids", "MLP_1"):
        np.testing.assert_array_equal(values(str(url), name), values(str(whole), name))


def test_a_text_file_may_have_another_name_when_the_run_goes_on(
    small_model: Path, tmp_path: Path
) -> None:
    """It is what it holds."""
    text, renamed, url = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "run"))
    text.write_text(json.dumps({"text": words(200)}) + "\n")
    given = [*arguments(small_model, dataset=None), "--no-statistics", "--no-neurons", "--text"]
    assert invoke("run", url, *given, text).code == 0
    unfinish(url, 1)
    text.rename(renamed)
    again = invoke("run", url, *given, renamed)
    assert again.code == 0, again.err


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_stopped_run_cannot_be_opened_and_ends_as_an_undisturbed_one(
    undisturbed: tuple[list[str], str], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (given, whole), url = undisturbed, str(tmp_path / "run")
    command = [sys.executable, "-m", "neoscope", "run", url, *given]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (Path(url) / "records" / "00000-00000002.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    assert f"stopped by {number.name}" in err
    assert nothing_finished(url)
    with pytest.raises(FileNotFoundError):
        group(url)
    with pytest.raises(FileNotFoundError):
        dataset(url)
    with pytest.raises(InputError, match="is not whole"):
        open_run(url)
    again = invoke("run", url, *given)
    assert again.code == 0
    assert "going on after batch" in again.err
    for name in (*LAYERS, "token_ids", "token_length"):
        np.testing.assert_array_equal(values(url, name), values(whole, name))
