"""A run of the small model in a few words, and what lies at a place, read with zarr."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
import torch
import zarr

from neoscope.text.documents import SAMPLE_FILE
from support.command import Finished, invoke
from support.places import body, listing, zarr_store

LAYERS = ("MLP_0", "MLP_1", "MLP_2")


SEQUENCES, POSITIONS, BATCHES = 8, 24, 2


SIZE = SEQUENCES * POSITIONS


@dataclass(frozen=True)
class Run:
    """A run that was made: its place, and what the command said."""

    url: str
    done: Finished

    @property
    def manifest(self) -> dict[str, Any]:
        return dict(json.loads(body(self.url, "manifest.json")))


def group(url: str) -> zarr.Group:
    return zarr.open_group(
        zarr_store(url), path="activations.zarr", mode="r", zarr_format=3, use_consolidated=False
    )


def values(url: str, name: str) -> npt.NDArray[Any]:
    return np.asarray(group(url)[name][...])  # type: ignore[index]


def sample() -> list[dict[str, Any]]:
    return [json.loads(line) for line in SAMPLE_FILE.read_text(encoding="utf-8").splitlines()]


def arguments(model: Path, **options: object) -> list[str]:
    """The arguments, but for the place, of a small run on the packaged sample."""
    chosen = {
        "model": model,
        "dataset": "sample",
        "sequences": SEQUENCES,
        "positions": POSITIONS,
        "batches": BATCHES,
        **options,
    }
    given = {f"--{name.replace('_', '-')}": value for name, value in chosen.items() if value}
    return [word for name, value in given.items() for word in (name, str(value))]


def make(tmp_path: Path, model: Path, **options: object) -> str:
    """A run in a folder with these options."""
    url = str(tmp_path / "run")
    done = invoke("run", url, *arguments(model, **options))
    assert done.code == 0, done.err
    return url


def stored_tokens(url: str) -> torch.Tensor:
    return torch.from_numpy(values(url, "token_ids")[:SEQUENCES])


def words(count: int) -> str:
    """Text of so many different words."""
    return " ".join(f"word{number * 7919 % 9973}" for number in range(count))


def long_text(path: Path, documents: int = 60) -> Path:
    """Parquet of many row groups of four documents, each a little longer than a batch but for one
    that is longer than two; so batches end in the first document of a group, and in the last."""
    rows = [{"id": f"d{number}", "text": words(22 + number % 60)} for number in range(documents)]
    rows.insert(2, {"id": "long", "text": words(80)})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=4)
    return path


def unfinish(folder: Path, batches: int) -> None:
    """Leave what is there when the record of so many batches has just been put.

    Of a run without statistics: those of an earlier record are gone once the next one is there.
    """
    (folder / "manifest.json").unlink()
    for path in folder.rglob("zarr.json"):
        path.unlink()
    for path in (folder / "records").iterdir():
        if int(path.stem.partition("-")[2]) > batches:
            path.unlink()


def nothing_finished(url: str) -> bool:
    """Whether nothing at a place looks like a finished run."""
    return not [key for key in listing(url) if key.endswith(("manifest.json", "zarr.json"))]
