"""What fails a check leaves no record and no manifest."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from support.command import invoke
from support.making import arguments, group, nothing_finished, unfinish
from support.places import dataset, listing


def test_values_that_are_not_finite_are_a_failed_check_and_leave_no_record(
    small_model: Path, place: str, tmp_path: Path
) -> None:
    broken = transformers.GPTNeoForCausalLM.from_pretrained(small_model)
    broken.transformer.h[1].mlp.c_fc.bias.data[5] = float("nan")
    folder = tmp_path / "nan"
    shutil.copytree(small_model, folder)
    broken.save_pretrained(folder)
    done = invoke("run", place, *arguments(folder))
    assert done.code == 5
    assert re.search(r"MLP_1 has (\d+ )?values that are not finite", done.err)
    assert nothing_finished(place)
    assert not [key for key in listing(place) if key.startswith("records/")]
    with pytest.raises(FileNotFoundError):
        group(place)
    with pytest.raises(FileNotFoundError):
        dataset(place)


@pytest.mark.parametrize(
    ("damage", "words_of_it"),
    [(Path.unlink, "is missing"), (lambda path: path.write_bytes(b"short"), "5 bytes")],
    ids=["missing", "short"],
)
def test_a_recorded_chunk_that_is_not_there_is_a_failed_check_and_no_manifest(
    small_run: list[str], tmp_path: Path, damage: Any, words_of_it: str
) -> None:
    url = tmp_path / "run"
    given = [*small_run, "--no-statistics", "--no-neurons"]
    assert invoke("run", url, *given).code == 0
    unfinish(url, 1)
    damage(url / "activations.zarr" / "MLP_1" / "c" / "2" / "0" / "0")
    done = invoke("run", url, *given)
    assert done.code == 5
    assert "MLP_1/c/2/0/0" in done.err
    assert words_of_it in done.err
    assert nothing_finished(str(url))


def test_a_store_that_gives_back_other_bytes_is_a_failed_check_and_leaves_no_record(
    small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neoscope.format.chunks import holds
    from neoscope.storage.store import Store

    really_read = Store.read

    def read(store: Store, key: str, fits: Any = None) -> memoryview | None:
        found = really_read(store, key, fits)
        if found is None or "MLP_2" not in key or fits is None or fits.func is not holds:
            return found
        return memoryview(bytes(found[:-9]) + bytes([found[-9] ^ 1]) + bytes(found[-8:]))

    monkeypatch.setattr(Store, "read", read)
    done = invoke("run", tmp_path / "run", *small_run)
    assert done.code == 5
    assert re.search("MLP_2/c/.* does not read back as it was stored", done.err)
    assert not (tmp_path / "run" / "records").exists()
    assert nothing_finished(str(tmp_path / "run"))
