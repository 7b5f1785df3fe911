"""The Zarr schema and the writer: what is stored is byte for byte what zarr-python itself would store."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import xarray
import xxhash
import zarr
from hypothesis import given
from hypothesis import strategies as st

from neoscope.errors import CheckError, UnavailableError
from neoscope.format import chunks
from neoscope.format.arrays import (
    MAX_CHUNK_ELEMENTS,
    ArraySchema,
    array_schemas,
    layer_chunks,
    metadata,
)
from neoscope.format.chunks import StoredChunk
from neoscope.format.layout import TOKEN_IDS, TOKEN_LENGTH
from neoscope.pipeline.layer_writer import LayerWriter, put_array
from neoscope.pipeline.limits import ring_slots
from neoscope.spec import RunSpec
from neoscope.storage.store import Body, Store, open_store

SPEC = RunSpec(sequences=8, positions=5, batches=2)
RECORD = "records/00000-00000001.json"
CPU = torch.device("cpu")


def schemas(layers: int = 2, neurons: int = 6, **fields: Any) -> dict[str, ArraySchema]:
    spec = RunSpec(**{"sequences": 8, "positions": 5, "batches": 2, **fields})
    return array_schemas(spec, layers=range(layers), neurons=neurons)


def several_columns(**fields: Any) -> ArraySchema:
    """A layer whose chunks split sequences and neurons, as the published models' do."""
    return ArraySchema(
        name="MLP_0",
        shape=(16, 5, 6),
        chunks=(2, 5, 3),
        dimensions=("sequence", "position", "neuron"),
        rows=8,
        **{"dtype": "float32", **fields},
    )


def some_values(seed: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


def files(folder: Path) -> dict[str, bytes]:
    """Every file under a folder by its relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# What the arrays of a run are


@pytest.mark.parametrize(
    ("dimensions", "expected"),
    [
        ((16, 512, 3072), (4, 512, 768)),  # GPT-Neo 125M
        ((16, 512, 8192), (4, 512, 512)),  # 1.3B: 1024 would be 2.1 million
        ((16, 512, 10240), (4, 512, 640)),  # 2.7B
        ((16, 2048, 3072), (4, 2048, 192)),
        ((16, 500, 1600), (4, 500, 800)),  # exactly the limit
        ((8, 32, 64), (2, 32, 64)),
        ((1, 512, 3072), (1, 512, 3072)),
        ((3, 10, 6), (1, 10, 6)),
        ((12, 10, 6), (3, 10, 6)),
        ((10, 10, 6), (2, 10, 6)),
        ((14, 10, 6), (2, 10, 6)),
        ((16, 500_000, 7), (4, 500_000, 1)),  # not even one neuron would fit
    ],
)
def test_chunks_follow_the_rule(
    dimensions: tuple[int, int, int], expected: tuple[int, int, int]
) -> None:
    assert layer_chunks(*dimensions, dimensions[0]) == expected


@given(st.integers(1, 64), st.integers(1, 4096), st.integers(1, 12_000))
def test_chunks_are_the_largest_that_the_rule_allows(
    sequences: int, positions: int, neurons: int
) -> None:
    rows, all_positions, columns = layer_chunks(sequences, positions, neurons, sequences)
    assert all_positions == positions
    divisors = [n for n in range(1, sequences + 1) if sequences % n == 0]
    assert rows == max((n for n in divisors if n <= sequences / 4), default=1)
    fitting = [
        n
        for n in range(1, neurons + 1)
        if neurons % n == 0 and rows * positions * n <= MAX_CHUNK_ELEMENTS
    ]
    assert columns == max(fitting, default=1)


def test_a_run_of_the_125m_shape_has_twelve_layers_and_two_tables() -> None:
    found = array_schemas(RunSpec(), layers=range(12), neurons=3072)
    assert list(found) == [*(f"MLP_{layer}" for layer in range(12)), "token_ids", "token_length"]
    assert {found[f"MLP_{layer}"].shape for layer in range(12)} == {(16, 512, 3072)}
    assert found["MLP_11"].chunk_bytes == 6_291_456
    assert len(found["MLP_11"].batch_keys(0)) == 16
    assert (found["token_ids"].shape, found["token_ids"].dtype) == ((16, 512), "int32")
    assert (found["token_length"].shape, found["token_length"].dtype) == ((16, 512), "uint16")


def test_sequences_of_all_partitions_and_batches_follow_each_other() -> None:
    found = schemas(partitions=3, batches=2)
    assert found["MLP_0"].shape == (48, 5, 6)
    assert found["token_ids"].shape == (48, 5)
    assert found["token_ids"].batch_keys(5) == ["activations.zarr/token_ids/c/5/0"]


@given(
    rows=st.integers(1, 24),
    positions=st.integers(1, 6),
    neurons=st.integers(1, 24),
    total=st.integers(1, 4),
    columns=st.integers(1, 4),
)
def test_batches_tile_the_grid_without_overlap(
    rows: int, positions: int, neurons: int, total: int, columns: int
) -> None:
    chosen = layer_chunks(rows, positions, neurons * columns, rows)
    layer = ArraySchema(
        "MLP_3",
        (rows * total, positions, neurons * columns),
        "float32",
        (chosen[0], positions, neurons),
        ("sequence", "position", "neuron"),
        rows,
    )
    keys = [key for batch in range(total) for key in layer.batch_keys(batch)]
    grid = [range(n // c) for n, c in zip(layer.shape, layer.chunks, strict=True)]
    expected = [
        "activations.zarr/MLP_3/c/" + "/".join(map(str, place))
        for place in itertools.product(*grid)
    ]
    assert keys == expected  # and so without repetition


# What zarr and xarray make of it


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_stored_layers_are_byte_for_byte_what_zarr_stores(
    tmp_path: Path, dtype: str, compression: str
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    layer = dataclasses.replace(  # large enough for Blosc to compress
        several_columns(dtype=dtype, compression=compression),
        shape=(16, 50, 120),
        chunks=(2, 50, 60),
    )
    documents = metadata({"MLP_0": layer}, {}, {})
    values = some_values(1, layer.shape).round(2)
    values[:2] = 0.0  # zarr leaves out chunks of fill values only; zeros are none
    values[:2, 0, ::60] = 1.0  # and a chunk of nothing else is refused
    store = open_store(str(ours), write=True)
    with closing(LayerWriter(store, layer, CPU)) as writer:
        for batch in range(2):
            writer.write(layer, batch, torch.from_numpy(values[8 * batch : 8 * batch + 8]), RECORD)
            wait(writer.finish())
    for key, body in documents.items():
        store.put(key, body)
        (theirs / key).parent.mkdir(parents=True, exist_ok=True)
        (theirs / key).write_bytes(body)
    array = zarr.open_array(str(theirs / "activations.zarr" / "MLP_0"), mode="r+")
    array[...] = values.astype(dtype)
    assert files(ours) == files(theirs)
    assert len(files(ours)) == 2 + 2 * 4 * 2


@pytest.mark.parametrize(("name", "dtype"), [(TOKEN_IDS, "int32"), (TOKEN_LENGTH, "uint16")])
def test_stored_tables_are_byte_for_byte_what_zarr_stores(
    tmp_path: Path, name: str, dtype: str
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    found = schemas()
    values = np.arange(80, dtype=dtype).reshape(16, 5)
    store = open_store(str(ours), write=True)
    for batch in range(2):
        put_array(store, found[name], batch, values[8 * batch : 8 * batch + 8], RECORD)
    for key, body in metadata(found, {}, {}).items():
        (theirs / key).parent.mkdir(parents=True, exist_ok=True)
        (theirs / key).write_bytes(body)
    zarr.open_array(str(theirs / "activations.zarr" / name), mode="r+")[...] = values
    chunk_files = {key: body for key, body in files(theirs).items() if "/c/" in key}
    assert files(ours) == chunk_files


def test_zarr_reads_the_metadata_as_it_was_meant(tmp_path: Path) -> None:
    found = schemas(store_dtype="float16")
    write_metadata(tmp_path, found, {"MLP_1": {"layer": 1}}, {"title": "x"})
    group = zarr.open_group(str(tmp_path / "activations.zarr"), mode="r", use_consolidated=False)
    assert group.metadata.zarr_format == 3
    assert group.attrs["title"] == "x"
    assert set(group.array_keys()) == set(found)
    for name, schema in found.items():
        array = group[name]
        assert isinstance(array, zarr.Array)
        assert (array.shape, array.chunks) == (schema.shape, schema.chunks)
        assert array.dtype == np.dtype(schema.dtype)
        assert array.metadata.dimension_names == schema.dimensions  # type: ignore[union-attr]
        assert [codec["name"] for codec in array.metadata.to_dict()["codecs"]] == (
            schema.to_json()["codecs"]
        )
    assert group["MLP_1"].attrs["layer"] == 1


def test_a_missing_chunk_reads_as_a_value_that_no_array_holds(tmp_path: Path) -> None:
    write_metadata(tmp_path, schemas(), {}, {})
    group = zarr.open_group(str(tmp_path / "activations.zarr"), mode="r", use_consolidated=False)
    assert np.isnan(np.asarray(group["MLP_0"][...])).all()  # type: ignore[index]
    assert (np.asarray(group["token_ids"][...]) == -1).all()  # type: ignore[index]
    assert (np.asarray(group["token_length"][...]) == 65_535).all()  # type: ignore[index]


@pytest.mark.filterwarnings("error")
def test_xarray_opens_it_with_named_dimensions_and_coordinates(tmp_path: Path) -> None:
    write_metadata(tmp_path, schemas(), {}, {})
    found = xarray.open_dataset(
        str(tmp_path / "activations.zarr"),
        engine="zarr",
        consolidated=False,
        zarr_format=3,
        chunks=None,
    )
    assert dict(found.sizes) == {"sequence": 16, "position": 5, "neuron": 6}
    assert set(found.data_vars) == {"MLP_0", "MLP_1"}
    assert set(found.coords) == {"token_ids", "token_length"}
    assert found.token_length.dtype == np.uint16  # a _FillValue attribute would make it float


def test_the_group_comes_last_so_that_it_cannot_be_opened_early() -> None:
    keys = list(metadata(schemas(), {}, {}))
    assert keys[-1] == "activations.zarr/zarr.json"
    assert len(keys) == 5
    assert json.loads(metadata(schemas(), {}, {})[keys[-1]])["node_type"] == "group"


def write_metadata(
    folder: Path, found: dict[str, ArraySchema], each: dict[str, Any], group: dict[str, Any]
) -> None:
    for key, body in metadata(found, each, group).items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(body)


# What is said of the values


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "uint16"])
def test_a_chunks_summary_agrees_with_numpy(dtype: str) -> None:
    values = (np.random.default_rng(2).normal(40, 25, (4, 30, 50))).clip(0).astype(dtype)
    found = chunks.summarize(values)
    wide = values.astype(np.float64)
    assert (found.count, found.nonfinite) == (6000, 0)
    assert (found.min, found.max) == (float(wide.min()), float(wide.max()))
    assert found.mean == pytest.approx(wide.mean(), rel=1e-6)
    assert found.std == pytest.approx(wide.std(), rel=1e-6)


def test_values_near_the_end_of_float32_do_not_overflow_the_summary() -> None:
    values = np.full((2, 3, 4), 3e38, dtype=np.float32)
    found = chunks.summarize(values)
    assert found.mean == pytest.approx(3e38, rel=1e-6)
    assert math.isfinite(found.squares)


def test_summaries_add_up() -> None:
    values = some_values(3, (8, 5, 6))
    parts = chunks.summarize(values[:2]) + chunks.summarize(values[2:])
    whole = chunks.summarize(values)
    assert (parts.count, parts.min, parts.max) == (whole.count, whole.min, whole.max)
    assert parts.mean == pytest.approx(whole.mean)
    assert parts.std == pytest.approx(whole.std)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_counted(value: float) -> None:
    values = some_values(4, (2, 3, 4))
    values[1, 0, 2] = values[0, 2, 1] = value
    assert chunks.summarize(values).nonfinite == 2


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_a_damaged_chunk_does_not_decode(compression: str) -> None:
    layer = several_columns(compression=compression)
    values = some_values(5, layer.chunks)
    buffer = np.concatenate([values.reshape(-1).view(np.uint8), np.zeros(4, np.uint8)])
    body = bytearray(chunks.encode(layer, buffer).tobytes())
    np.testing.assert_array_equal(chunks.decode(layer, bytes(body)), values)
    body[len(body) // 2] ^= 1
    with pytest.raises(ValueError):  # noqa: PT011
        chunks.decode(layer, bytes(body))


def test_digests_are_those_of_the_little_endian_bytes() -> None:
    values = some_values(6, (2, 3, 4))
    expected = xxhash.xxh3_128_hexdigest(values.astype("<f4").tobytes())
    assert chunks.digest(values) == expected
    assert chunks.digest(values.astype(">f4")) == expected
    assert chunks.digest(np.asfortranarray(values)) == expected


def test_an_arrays_digest_depends_on_the_order_of_its_chunks() -> None:
    first, second = chunks.bytes_digest(b"a"), chunks.bytes_digest(b"b")
    assert chunks.combine([first, second]) != chunks.combine([second, first])
    assert chunks.combine([first]) == xxhash.xxh3_128_hexdigest(bytes.fromhex(first))


# The writer


class GatedStore(Store):
    """A folder whose chunks are stored only while the gate is open, or fail."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.url, store.backend)
        self.gate = threading.Event()
        self.gate.set()
        self.fails_from: int | None = None
        self.puts = itertools.count()

    def put(self, key: str, body: Body) -> str | None:
        self._wait()
        return super().put(key, body)

    def create(self, key: str, body: Body) -> str | None:
        self._wait()
        return super().create(key, body)

    def _wait(self) -> None:
        assert self.gate.wait(60)
        if self.fails_from is not None and next(self.puts) >= self.fails_from:
            raise UnavailableError("the store went away")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[GatedStore]:
    store = GatedStore(open_store(str(tmp_path / "store"), write=True))
    yield store
    store.gate.set()


def wait(parts: dict[str, list[Future[StoredChunk]]]) -> dict[str, list[StoredChunk]]:
    return {name: [part.result(60) for part in each] for name, each in parts.items()}


def layers(number: int) -> dict[str, ArraySchema]:
    found = schemas(layers=number)
    return {name: schema for name, schema in found.items() if name.startswith("MLP_")}


def test_a_slow_store_blocks_the_pass_and_holds_a_ring_of_layers_at_most(
    store: GatedStore,
) -> None:
    slots = ring_slots(next(iter(layers(1).values())), 8)
    found = layers(slots + 4)
    values = torch.from_numpy(some_values(7, (8, 5, 6)))
    taken: queue.Queue[str] = queue.Queue()
    store.gate.clear()
    with closing(LayerWriter(store, found["MLP_0"], CPU)) as writer:

        def forward() -> None:
            for name, schema in found.items():
                writer.write(schema, 0, values, RECORD)
                taken.put(name)

        thread = threading.Thread(target=forward, daemon=True)
        thread.start()
        assert [taken.get(timeout=30) for _ in range(slots)] == list(found)[:slots]
        with pytest.raises(queue.Empty):
            taken.get(timeout=0.5)
        store.gate.set()
        assert [taken.get(timeout=30) for _ in range(4)] == list(found)[slots:]
        thread.join(30)
        stored = wait(writer.finish())
    assert list(stored) == list(found)
    assert sum(len(parts) for parts in stored.values()) == len(list(store.objects()))


@pytest.mark.parametrize(
    ("sequences", "slots"),
    # Three layers of 100 MB; twelve of 25 MB, of four chunks each; two of 400 MB, which are more than that.
    [(16, 3), (4, 12), (64, 2)],
)
def test_the_ring_holds_some_hundred_megabytes_and_two_layers_at_least(
    sequences: int, slots: int
) -> None:
    spec = RunSpec(sequences=sequences)
    schema = array_schemas(spec, layers=range(12), neurons=3072)["MLP_0"]
    assert ring_slots(schema, sequences) == slots


def test_a_layer_is_the_callers_again_as_soon_as_it_is_taken(store: GatedStore) -> None:
    """The forward pass writes the next layer over it."""
    schema = several_columns()
    values = some_values(8, (8, 5, 6))
    given = torch.from_numpy(values.copy())
    store.gate.clear()
    with closing(LayerWriter(store, schema, CPU)) as writer:
        writer.write(schema, 0, given, RECORD)
        given.zero_()
        store.gate.set()
        parts = wait(writer.finish())["MLP_0"]
    assert [part.key for part in parts] == schema.batch_keys(0)
    bodies = [chunks.decode(schema, store.get(part.key) or b"") for part in parts]
    assert [chunks.digest(body) for body in bodies] == [part.digest for part in parts]
    for body, (row, column) in zip(bodies, itertools.product(range(4), range(2)), strict=True):
        expected = values[2 * row : 2 * row + 2, :, 3 * column : 3 * column + 3]
        np.testing.assert_array_equal(body, expected)


def test_what_is_recorded_of_a_chunk_is_what_lies_in_the_store(store: GatedStore) -> None:
    schema = several_columns()
    values = some_values(9, (8, 5, 6))
    with closing(LayerWriter(store, schema, CPU)) as writer:
        writer.write(schema, 1, torch.from_numpy(values), RECORD)
        parts = wait(writer.finish())["MLP_0"]
    sizes = {item.key: (item.size, item.tag) for item in store.objects()}
    assert {part.key: (part.size, part.tag) for part in parts} == sizes
    total = parts[0].summary
    for part in parts[1:]:
        total = total + part.summary
    assert (total.min, total.max) == (float(values.min()), float(values.max()))
    assert total.mean == pytest.approx(values.astype(np.float64).mean())


@pytest.mark.parametrize("fails_from", [0, 5])
def test_a_failed_put_comes_out_as_its_error(store: GatedStore, fails_from: int) -> None:
    found = layers(30)
    values = torch.from_numpy(some_values(10, (8, 5, 6)))
    store.fails_from = fails_from
    writer = LayerWriter(store, found["MLP_0"], CPU)
    with closing(writer), pytest.raises(UnavailableError, match="went away"):
        for schema in found.values():
            writer.write(schema, 0, values, RECORD)
        wait(writer.finish())


def test_a_store_that_fails_ends_the_pass_before_it_is_through(store: GatedStore) -> None:
    found = layers(1000)
    values = torch.from_numpy(some_values(11, (8, 5, 6)))
    store.fails_from = 0
    taken = 0
    writer = LayerWriter(store, found["MLP_0"], CPU)
    with closing(writer), pytest.raises(UnavailableError):
        for schema in found.values():
            writer.write(schema, 0, values, RECORD)
            taken += 1
            time.sleep(0.005)
    assert taken <= 100


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_chunk_with_a_value_that_is_not_finite_is_not_stored(
    store: GatedStore, value: float
) -> None:
    schema = several_columns()
    values = some_values(12, (8, 5, 6))
    values[3, 0, 4] = value
    writer = LayerWriter(store, schema, CPU)
    with closing(writer), pytest.raises(CheckError, match=r"MLP_0 has 1 values .*/c/1/0/1"):
        writer.write(schema, 0, torch.from_numpy(values), RECORD)
        wait(writer.finish())
    assert "activations.zarr/MLP_0/c/1/0/1" not in {item.key for item in store.objects()}


def test_a_value_that_float16_cannot_hold_is_found_after_the_cast(store: GatedStore) -> None:
    schema = several_columns(dtype="float16")
    values = some_values(13, (8, 5, 6))
    values[0, 0, 0] = 70_000
    writer = LayerWriter(store, schema, CPU)
    with closing(writer), pytest.raises(CheckError, match="--store-dtype float32"):
        writer.write(schema, 0, torch.from_numpy(values), RECORD)
        wait(writer.finish())


def test_chunks_of_a_broken_off_start_are_put_over_until_they_are_recorded(
    store: GatedStore,
) -> None:
    schema = several_columns()
    first, second = (torch.from_numpy(some_values(seed, (8, 5, 6))) for seed in (14, 15))
    with closing(LayerWriter(store, schema, CPU)) as writer:
        writer.write(schema, 0, first, RECORD)
        before = wait(writer.finish())
        writer.write(schema, 0, second, RECORD)
        after = wait(writer.finish())
        body = store.get(after["MLP_0"][0].key) or b""
        assert chunks.digest(chunks.decode(schema, body)) == after["MLP_0"][0].digest
        assert before["MLP_0"][0].digest != after["MLP_0"][0].digest
        store.put(RECORD, b"{}")
        writer.write(schema, 0, second, RECORD)
        assert wait(writer.finish()) == after
        writer.write(schema, 0, first, RECORD)
        with pytest.raises(CheckError, match="recorded with other values"):
            wait(writer.finish())
    assert store.get(after["MLP_0"][0].key) == body


def test_one_writer_leaves_no_thread_behind(store: GatedStore) -> None:
    schema = several_columns()
    with closing(LayerWriter(store, schema, CPU)) as writer:
        writer.write(schema, 0, torch.from_numpy(some_values(16, (8, 5, 6))), RECORD)
        wait(writer.finish())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("put")]
    assert os.listdir(store.url) == ["activations.zarr"]
