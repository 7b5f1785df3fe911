"""A selection of a run's arrays as safetensors, one file a layer and one for the tokens.

In: a run and a selection. Out: `MLP_0.safetensors` ... and `tokens.safetensors` in a local folder. A
file has its name when it is whole, and carries the digest of its data, by which a later start knows it.
It does not hold a layer in memory: each chunk goes to its place in the file.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from neoscope.commands.pull.selection import Numbers, Piece, Selection, pieces
from neoscope.commands.pull.source import VerifiedSource
from neoscope.format.arrays import ArraySchema, schemas_of
from neoscope.format.layout import TOKEN_IDS, TOKEN_LENGTH
from neoscope.progress import Progress
from neoscope.storage.store import Store, concurrent_map

DTYPES = {"float32": "F32", "float16": "F16", "int32": "I32", "int64": "I64", "uint16": "U16"}
NO_DIGEST = "0" * 32
TOKENS = "tokens"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file: what of the run's chunks fills it, or the numbers that it is."""

    dtype: str
    shape: tuple[int, ...]
    content: list[Piece] | Numbers

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def pull_files(
    origin: VerifiedSource,
    dest: Store,
    selection: Selection,
    said: dict[str, Any],
    progress: Progress,
) -> None:
    """Write what is selected into the folder of `dest`; `said` goes into every file's metadata."""
    labels = selection.labels(origin.run.claim["spec"]["positions"])
    schemas = schemas_of(origin.run.claim)
    tensors = {name: _tensor(schemas[name], labels) for name in selection.names()}
    tokens = {name: tensors.pop(name) for name in (TOKEN_IDS, TOKEN_LENGTH)}
    axes = {name: Tensor("int64", (len(n),), n) for name, n in labels.items() if len(n)}
    files = {**{name: {name: tensor} for name, tensor in tensors.items()}, TOKENS: axes | tokens}
    attributes = origin.attributes("")
    missing = {}
    for name, content in files.items():
        about = origin.attributes(name) if name in tensors else {}
        header = _header(content, {**attributes, **about, **said})
        if not _whole(Path(dest.url) / f"{name}.safetensors", header):
            missing[name] = header
    progress.begin("pulling", sum(_read_bytes(schemas, files[name]) for name in missing), "B")
    for name, header in missing.items():
        _write(origin, Path(dest.url) / f"{name}.safetensors", header, files[name], progress)
    progress.end()


def _tensor(schema: ArraySchema, labels: dict[str, Numbers]) -> Tensor:
    wanted = tuple(labels[dimension] for dimension in schema.dimensions)
    return Tensor(schema.dtype, tuple(map(len, wanted)), list(pieces(schema, wanted)))


def _read_bytes(schemas: dict[str, ArraySchema], tensors: dict[str, Tensor]) -> int:
    """The bytes of the chunks that are read for a file."""
    return sum(
        len(tensor.content) * schemas[name].chunk_bytes
        for name, tensor in tensors.items()
        if isinstance(tensor.content, list)
    )


def _header(tensors: dict[str, Tensor], attributes: dict[str, Any]) -> bytes:
    """The head of a safetensors file: its length, then JSON, padded to 8 bytes; the digest is 0 yet."""
    words = {k: v if isinstance(v, str) else json.dumps(v) for k, v in attributes.items()}
    entries: dict[str, Any] = {"__metadata__": {"digest": NO_DIGEST, **words}}
    begin = 0
    for name, tensor in tensors.items():
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, begin + tensor.nbytes],
        }
        begin += tensor.nbytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _digest(path: Path, begin: int) -> str:
    """xxh3-128 of a file's bytes from `begin`."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        file.seek(begin)
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _sealed(path: Path, header: bytes) -> bytes:
    """The header with the digest of the data behind it."""
    return header.replace(NO_DIGEST.encode(), _digest(path, len(header)).encode(), 1)


def _whole(path: Path, header: bytes) -> bool:
    """Whether a file is there with this header, and data of the digest that it carries."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        return file.read(len(header)) == _sealed(path, header)


def _write(
    origin: VerifiedSource,
    path: Path,
    header: bytes,
    tensors: dict[str, Tensor],
    progress: Progress,
) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(tensor.nbytes for tensor in tensors.values()))
    begin = len(header)
    for tensor in tensors.values():
        values = np.memmap(part, tensor.dtype, "r+", begin, tensor.shape)
        _fill(origin, values, tensor.content, path.stem, progress)
        begin += tensor.nbytes
    with part.open("r+b") as file:
        file.write(_sealed(part, header))
    part.rename(path)


def _fill(
    origin: VerifiedSource,
    values: npt.NDArray[Any],
    content: list[Piece] | Numbers,
    name: str,
    progress: Progress,
) -> None:
    if not isinstance(content, list):
        values[...] = content
        return

    def fetch(piece: Piece) -> int:
        chunk = origin.values(piece.key)
        values[piece.target] = piece.cut(chunk)
        return chunk.nbytes

    for size in concurrent_map(fetch, content):
        progress.advance(f"pulling {name}", size)
