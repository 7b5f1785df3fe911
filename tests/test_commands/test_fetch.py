"""`neoscope fetch`: what a run needs of the Hub is in the cache after it, and nothing else is anywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import GPTNeoModel

from support.command import Finished, neoscope
from support.fake_hub import FakeHub, refusing, serving
from test_hub import (
    CONFIGS,
    DOCUMENTS,
    digests,
    each,
    error_line,
    loaded,
    no_settings_of_the_user,  # noqa: F401
    write_rows,
)

SIZE = ("--sequences", "8", "--positions", "24")
LIGHT = """
import json, sys
from neoscope.commands.main import invoke
code = invoke(sys.argv[1:])
print(json.dumps([code, [name for name in ("torch", "transformers") if name in sys.modules]]))
"""


WEB = ("--model", "acme/tiny", "--dataset", "acme/web", "--dataset-config", "small", *SIZE)
FETCH_TEXT = ["fetch", "--text", *WEB]


@pytest.fixture(scope="module")
def hub(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    root = tmp_path_factory.mktemp("hub")
    tiny = Path(shutil.copytree(small_model, root / "models" / "acme" / "tiny"))
    (tiny / "flax_model.msgpack").write_bytes(b"of no use to neoscope")
    shards = Path(shutil.copytree(small_model, root / "models" / "acme" / "shards"))
    GPTNeoModel.from_pretrained(small_model).save_pretrained(shards, max_shard_size="20KB")
    (shards / "model.safetensors").unlink()
    web = root / "datasets" / "acme" / "web"
    for number in range(5):
        rows = [(f"<urn:{number}:{name}>", text) for name, text in DOCUMENTS]
        write_rows(web / "small" / f"{number}.parquet", rows)
    write_rows(web / "data" / "other.parquet", DOCUMENTS)
    (web / "README.md").write_text(
        CONFIGS.replace("  - split: train\n    path: small/train.parquet\n", "").replace(
            "split: test\n    path: small/test.parquet", "split: train\n    path: small/*.parquet"
        )
    )
    with serving(root) as hub:
        yield hub


@pytest.fixture(scope="module")
def environment(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path_factory.mktemp("home"))}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the command is started."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def fetched(environment: dict[str, str], elsewhere: Path) -> dict[str, Finished]:
    commands: dict[str, list[object]] = {
        "tiny": ["fetch", "--model", "acme/tiny"],
        "absent": ["fetch", "--model", "acme/absent"],
        "shards": ["fetch", "--model", "acme/shards"],
        "text": [*FETCH_TEXT, "--partitions", 2],
        "sample": ["fetch", "--text", "--dataset", "sample", "--weights", "random"],
        "no split": [*FETCH_TEXT, "--dataset-split", "test"],
        "no data set": ["fetch", "--model", "acme/tiny", "--text", "--dataset", "acme/absent"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(elsewhere)
        return each(commands, **environment)


def test_it_says_which_commit_it_has_fetched(fetched: dict[str, Finished], hub: FakeHub) -> None:
    assert fetched["tiny"].code == 0, fetched["tiny"].err
    commit = hub.sha("models/acme/tiny")
    assert fetched["tiny"].out.splitlines() == [
        f"tokenizer acme/tiny: commit {commit}",
        f"model acme/tiny: commit {commit}",
    ]


def test_it_fetches_what_a_run_needs_and_writes_nowhere_but_into_the_cache(
    fetched: dict[str, Finished], hub: FakeHub, elsewhere: Path
) -> None:
    weights = (hub.folder / "models" / "acme" / "tiny" / "model.safetensors").stat().st_size
    assert hub.sent("models/acme/tiny", "model.safetensors") == weights
    assert hub.sent("models/acme/tiny", "flax_model.msgpack") == 0
    assert not [*elsewhere.iterdir()]


def test_a_run_after_it_needs_no_hub(
    fetched: dict[str, Finished], environment: dict[str, str], tmp_path: Path
) -> None:
    done = neoscope(
        *("run", tmp_path / "run", "--model", "acme/tiny", "--dataset", "sample"),
        *("--sequences", "8", "--positions", "24"),
        **environment | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.code == 0, done.err


def test_what_cannot_be_fetched_is_one_line_and_an_exit_code(
    fetched: dict[str, Finished], environment: dict[str, str], tmp_path: Path
) -> None:
    commands: dict[str, list[object]] = {
        "cached": ["fetch", "--model", "acme/tiny"],
        "elsewhere": ["fetch", "--model", "acme/elsewhere"],
        "folder": ["fetch", "--model", tmp_path, "--model-revision", "v9"],
    }
    with refusing() as nowhere:
        ended = each(commands, **environment | {"HF_ENDPOINT": nowhere})
    assert fetched["absent"].code == 3
    assert ended["cached"].code == 0
    assert ended["elsewhere"].code == 75
    assert "acme/elsewhere is not on this disk" in error_line(ended["elsewhere"])
    assert ended["folder"].code == 2


def test_it_loads_neither_torch_nor_transformers(
    environment: dict[str, str], tmp_path: Path
) -> None:
    home = {"HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *FETCH_TEXT],
        capture_output=True,
        text=True,
        env=os.environ | environment | home,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []], done.stderr


def test_weights_in_several_files_are_all_brought(
    fetched: dict[str, Finished], environment: dict[str, str], tmp_path: Path
) -> None:
    assert fetched["shards"].code == 0, fetched["shards"].err
    done = neoscope(
        *("run", tmp_path / "run", "--model", "acme/shards", "--dataset", "sample", *SIZE),
        **environment | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.code == 0, done.err


def test_of_the_text_it_brings_the_first_files_of_each_partition_and_says_which(
    fetched: dict[str, Finished], hub: FakeHub
) -> None:
    assert fetched["text"].code == 0, fetched["text"].err
    *_, text, first, second = fetched["text"].out.splitlines()
    assert text == f"text acme/web: commit {hub.sha('datasets/acme/web')}"
    assert first.startswith("    small/0.parquet: ") and second.startswith("    small/3.parquet: ")
    assert hub.sent("datasets/acme/web", "data/other.parquet") == 0
    assert fetched["sample"].out.splitlines()[-1] == "text sample: needs no Hub"
    assert fetched["no split"].code == 3
    assert "has no split test: give --dataset-split, one of train" in error_line(
        fetched["no split"]
    )
    assert fetched["no data set"].code == 3


@pytest.mark.parametrize("partitions", [1, 2])
def test_a_run_without_the_hub_then_reads_what_one_with_it_reads(
    fetched: dict[str, Finished], environment: dict[str, str], tmp_path: Path, partitions: int
) -> None:
    words = ["--partitions", partitions, "--partition", "0-1" if partitions == 2 else "0"]
    online = each({"run": ["run", tmp_path / "online", *WEB, *words]}, **environment)
    offline = each(
        {
            "run": ["run", tmp_path / "offline", *WEB, *words],
            "verify": ["verify", tmp_path / "offline", "--text"],
            "more": ["run", tmp_path / "more", *WEB, *words, "--batches", 40],
            "others": ["run", tmp_path / "others", *WEB, "--partitions", 3, "--partition", 1],
            "config": ["run", tmp_path / "config", *WEB, "--dataset-config", "default"],
        },
        **environment | {"HF_HUB_OFFLINE": "1"},
    )
    for done in (online["run"], offline["run"], offline["verify"]):
        assert done.code == 0, done.err
    assert digests(tmp_path / "offline") == digests(tmp_path / "online")
    texts = [loaded(tmp_path / name, "manifest.json")["text"] for name in ("online", "offline")]
    assert texts[0] == texts[1]
    for name, part in (
        ("more", "the file small/1.parquet of"),
        ("others", "how 3 partitions share"),
    ):
        assert offline[name].code == 75
        said = error_line(offline[name])
        assert said.startswith(f"HF_HUB_OFFLINE is set, and {part} the data set acme/web")
        assert "neoscope fetch --text" in said
    assert offline["config"].code == 75
    assert "the data set acme/web is not on this disk" in error_line(offline["config"])
