"""The sums by token that a run without arrays keeps: those of a run with arrays, however it was made."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faults.test_bits import edited
from neoscope import by_token
from neoscope.format import layout, records, states
from neoscope.statistics.token_sums import TokenSums
from neoscope.storage.store import open_store
from support.command import invoke
from support.making import arguments
from support.places import body, listing

# Of GPT-Neo's own hook point, the output of a linear map, the inputs are summed; of this one the values.
VALUES = ("--hook", "transformer.h.*.mlp.c_proj", "--hook-side", "input")
KEPT = ("--no-arrays", "--token-sums")
COLUMNS = ["length", "log_frequency", "begins_with_space"]


def make(url: object, model: Path, *more: object, **options: object) -> str:
    done = invoke("run", url, *arguments(model, **options), *more)
    assert done.code == 0, done.err
    return str(url)


def manifest(url: str) -> dict[str, Any]:
    return dict(json.loads(body(url, "manifest.json")))


def assert_regressed_alike(one: str, other: str, tolerance: float, **options: Any) -> None:
    """Coefficients within a share of their errors, t and shares of variance within as much."""
    table = by_token.features(one)
    assert table.equals(by_token.features(other))
    mine, theirs = (by_token.regress(url, table[COLUMNS], **options) for url in (one, other))
    units = {"coefficient": mine.standard_error, "t": 1.0, "r2": 1.0, "r2_token": 1.0}
    for variable, unit in units.items():
        away = abs(mine[variable] - theirs[variable])
        assert (away <= tolerance * unit).all(), (variable, float((away / unit).max()))
    assert mine.occurrences == theirs.occurrences


@pytest.mark.parametrize(
    ("hook", "sums_of", "tolerance"), [((), "inputs", 1e-4), (VALUES, "values", 1e-8)]
)
def test_they_are_those_of_the_arrays(
    place: str,
    small_model: Path,
    tmp_path: Path,
    hook: tuple[str, ...],
    sums_of: str,
    tolerance: float,
) -> None:
    """Of the values to rounding in float64, of the inputs within that of outputs in float32."""
    given = ("--separator", "eos", "--sequences-per-pass", 2, *hook)
    arrays = make(tmp_path / "arrays", small_model, *given, batches=4)
    make(place, small_model, *given, *KEPT, batches=4)
    entry = manifest(place)["token_sums"]
    assert entry["sums_of"] == sums_of
    width = 16 if sums_of == "inputs" else 64
    for one, other in zip(by_token.sums(place), by_token.sums(arrays), strict=True):
        for name in ("layer", "token", "first", "count"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        kept = TokenSums.load(body(place, layout.merged_key(one.layer)))
        assert kept.total.shape == (entry["cells"], width) and kept.squares is None
        assert (kept.weight is not None) == (sums_of == "inputs")
        # Sums of values: at every token as from the arrays, but for the pivot's rounding.
        away = one.about(other.pivot).total - other.total
        assert np.abs(away).max() <= tolerance * np.abs(other.total).max()
    for first_positions in (True, False):
        assert_regressed_alike(arrays, place, tolerance, first_positions=first_positions)
    assert invoke("verify", place).code == 0
    again = invoke("run", place, *arguments(small_model, batches=4), *given, *KEPT)
    assert again.code == 0 and "already holds this run" in again.err


def test_what_is_captured_in_reduced_precision_is_summed_as_it_is_stored(
    small_model: Path, tmp_path: Path
) -> None:
    given = ("--precision", "bfloat16", "--store-dtype", "float16", *VALUES)
    arrays = make(tmp_path / "arrays", small_model, *given)
    kept = make(tmp_path / "kept", small_model, *given, *KEPT)
    assert_regressed_alike(arrays, kept, 1e-8)


def test_three_partitions_one_killed_and_merged_are_the_same(
    partitioned: str, small_model: Path, tmp_path: Path
) -> None:
    """The partitions of the run with arrays, made in another order; partition 2 twice, its first start
    stopped after a record."""
    spec = manifest(partitioned)["spec"]
    texts = [Path(partitioned).parent / file["name"] for file in spec["text"]]
    words: list[object] = ["--model", small_model, *KEPT]
    words += [word for text in texts for word in ("--text", text)]
    words += ["--sequences", 4, "--positions", 16, "--partitions", 3, "--batches", 2]
    whole, kept = tmp_path / "whole", tmp_path / "kept"
    for partition in (0, 1, 2):
        assert invoke("run", whole, *words, "--partition", partition).code == 0
    for partition in (2, 0):
        assert invoke("run", kept, *words, "--partition", partition).code == 0
    # A merged object that a worker left that was killed as it committed.
    shutil.copy(whole / "token-sums/MLP_0.safetensors", kept / "token-sums/MLP_0.safetensors")
    done = invoke("run", kept, *words, "--partition", 1)
    assert done.code == 0, done.err
    assert manifest(str(kept))["content_digest"] == manifest(str(whole))["content_digest"]
    assert_regressed_alike(partitioned, str(kept), 1e-4)
    assert invoke("verify", kept).code == 0


def test_a_start_that_goes_on_after_a_record_ends_with_the_same_bits(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two batches are recorded and the third is not; and superseded objects are gone at the end."""
    for module in ("neoscope.format.records", "neoscope.pipeline.loop"):
        monkeypatch.setattr(f"{module}.BATCHES_A_RECORD", 1)
    for hook in ((), VALUES):
        folder = tmp_path / str(len(hook))
        whole, url = (folder / name for name in ("whole", "run"))
        make(whole, small_model, *hook, *KEPT, batches=3)
        make(url, small_model, *hook, *KEPT, batches=3)
        make(folder / "two", small_model, *hook, *KEPT, batches=2)
        (url / "manifest.json").unlink()
        (url / "records" / "00000-00000003.json").unlink()
        for name in ("statistics", "neurons", "token-sums"):
            for path in (url / name).iterdir():
                path.unlink()
            for path in (folder / "two" / name).glob("00000-00000002*"):
                shutil.copy(path, url / name)
        make(url, small_model, *hook, *KEPT, batches=3)
        found, expected = (manifest(str(each)) for each in (url, whole))
        assert found["content_digest"] == expected["content_digest"]
        left = sorted(path.name for path in (url / "token-sums").iterdir())
        states_left = [f"00000-00000003-{layer:02d}.safetensors" for layer in range(3)]
        assert left == [*states_left, *(f"MLP_{layer}.safetensors" for layer in range(3))]


def test_a_worker_that_is_behind_leaves_nothing_that_was_superseded(
    small_model: Path, tmp_path: Path
) -> None:
    url = make(tmp_path / "run", small_model, *KEPT)
    store, key = open_store(url), layout.record_key(0, 2)
    keys = layout.state_keys("token_sums", 0, 2, range(3))
    bodies = [store.get(each) or b"" for each in keys]
    store.delete(keys)
    found = states.put_token_sums(store, 0, 2, bodies, range(3), key)
    claim = records.read_claim(store)
    assert claim and found["token_sums"] == records.read_record(store, claim, 0, 2)["token_sums"]
    assert not {item.key for item in store.objects("token-sums")} & set(keys)


@pytest.mark.parametrize(
    "key", ["token-sums/00000-00000002-01.safetensors", "token-sums/MLP_1.safetensors"]
)
@pytest.mark.parametrize("at", [0.3, 0.999])
def test_verify_names_what_is_missing_or_altered(
    key: str, at: float, small_model: Path, tmp_path: Path
) -> None:
    make(tmp_path / "run", small_model, *KEPT)
    path = tmp_path / "run" / key
    bits = bytearray(path.read_bytes())
    bits[int(len(bits) * at)] ^= 4
    path.write_bytes(bits)
    done = invoke("verify", tmp_path / "run")
    assert done.code == 5
    assert f"{key}: is not the one that was recorded" in done.out
    if "MLP" in key:
        pulled = invoke("pull", tmp_path / "run", tmp_path / "copy")
        assert pulled.code == 5 and key in pulled.err
        regressed = invoke("report", tmp_path / "run")
        assert regressed.code == 5 and f"{key} is not the one that was stored" in regressed.err
    path.unlink()
    done = invoke("verify", tmp_path / "run")
    assert done.code == 5 and f"{key}: is missing" in done.out


def test_verify_finds_sums_that_are_sound_but_of_other_values(
    small_model: Path, tmp_path: Path
) -> None:
    """The object, the digest of it and the seals of the manifest, changed together."""
    url = tmp_path / "run"
    make(url, small_model, *KEPT)
    key = layout.merged_key(2)
    path = url / key
    sums = TokenSums.load(path.read_bytes())
    sums.total[3, 5] += 1
    path.write_bytes(sums.dump())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def change(document: dict[str, Any]) -> None:
        document["token_sums"]["objects"][key]["sha256"] = sha256

    (url / "manifest.json").write_bytes(edited((url / "manifest.json").read_bytes(), change))
    done = invoke("verify", url)
    assert done.code == 5
    assert f"{key}: holds other values than the partitions' states give" in done.out


def test_a_pulled_run_has_them_and_a_deleted_one_leaves_nothing(
    endpoint: str, s3_url: str, small_model: Path, tmp_path: Path
) -> None:
    make(s3_url, small_model, *KEPT)
    copy = str(tmp_path / "copy")
    assert invoke("pull", s3_url, copy).code == 0
    assert set(listing(copy)) == set(listing(s3_url))
    assert invoke("verify", copy).code == 0
    for one, other in zip(by_token.sums(copy), by_token.sums(s3_url), strict=True):
        assert one.dump() == other.dump()
    assert invoke("delete", s3_url, "--yes").code == 0
    assert listing(s3_url) == {}


def test_the_report_of_a_run_without_arrays_has_its_section(
    small_model: Path, tmp_path: Path
) -> None:
    make(tmp_path / "run", small_model, *KEPT, batches=4)
    done = invoke("report", tmp_path / "run", "--permutations", 19)
    assert done.code == 0, done.err
    page = (tmp_path / "run/report.html").read_text("utf-8")
    assert "occurrences are of" in page and "Not answered on this page" not in page


def test_what_does_not_fit_is_refused_in_one_line(small_model: Path, tmp_path: Path) -> None:
    for more, code, said in (
        (("--token-sums",), 2, "--token-sums goes with --no-arrays only"),
        ((*KEPT, "--no-neurons"), 2, "--token-sums and --no-neurons do not fit"),
        ((*KEPT, "--precision", "bfloat16"), 2, "drop --precision bfloat16, or --token-sums"),
        ((*KEPT, "--precision", "float16"), 2, "drop --precision float16, or --token-sums"),
        ((*KEPT, "--store-dtype", "float16"), 2, "drop --store-dtype float16, or --token-sums"),
    ):
        for command in ("run", "plan"):
            output = [tmp_path / "run"] if command == "run" else []
            done = invoke(command, *output, *arguments(small_model), *more)
            assert (done.code, done.out) == (code, ""), (command, more, done.err)
            assert said in done.err.splitlines()[-1]
    assert not (tmp_path / "run" / "run.json").exists()


def test_sums_that_the_hosts_memory_may_not_hold_are_refused(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neoscope.pipeline.inputs.free_host_memory", lambda: 100_000)
    done = invoke("run", tmp_path / "run", *arguments(small_model), *KEPT)
    assert done.code == 3
    assert "of memory, and 0.00 GB are free: take some of the --layers" in done.err
    monkeypatch.setattr("neoscope.pipeline.memory.LARGEST_OBJECT", 10_000)
    done = invoke("run", tmp_path / "run", *arguments(small_model), *KEPT)
    assert done.code == 3
    assert "GB a layer, and an object of S3 has 5 GB at most" in done.err
