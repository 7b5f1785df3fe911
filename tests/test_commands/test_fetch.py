"""`neoscope fetch`: what a run needs of the Hub is in the cache after it, and nothing else is anywhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command import Finished, neoscope
from support.fake_hub import FakeHub, refusing, serving
from test_hub import each, error_line, no_settings_of_the_user  # noqa: F401


@pytest.fixture(scope="module")
def hub(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    root = tmp_path_factory.mktemp("hub")
    tiny = Path(shutil.copytree(small_model, root / "models" / "acme" / "tiny"))
    (tiny / "flax_model.msgpack").write_bytes(b"of no use to neoscope")
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
