"""The runs under a place as a table or as JSON.

In: entries. Out: lines of text. It reads nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from neoscope.reading.runs import Entry

HEAD = ("state", "model", "text", "tokens", "size", "run")
RIGHT = {"tokens", "size"}
UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def as_table(entries: Sequence[Entry]) -> list[str]:
    """A line for each run under a line of headings; random weights are marked."""
    rows = [HEAD, *map(_row, entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return [
        "  ".join(
            cell.rjust(width) if name in RIGHT else cell.ljust(width)
            for name, cell, width in zip(HEAD, row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def as_json(entries: Sequence[Entry]) -> str:
    """A list of objects with the fields of `Entry`, and `state`."""
    found = [{**dataclasses.asdict(entry), "state": entry.state} for entry in entries]
    return json.dumps(found, indent=2, ensure_ascii=False)


def _row(entry: Entry) -> tuple[str, ...]:
    if entry.damage:
        return (entry.state, "-", "-", "-", "-", entry.url)
    model = entry.model + (" (random weights)" if entry.weights == "random" else "")
    size = "-" if entry.size is None else _bytes(entry.size)
    return (entry.state, model, entry.text, f"{entry.tokens:,}", size, entry.url)


def _bytes(size: int) -> str:
    unit, name = next((each for each in UNITS if size >= each[0]), (1, "B"))
    return f"{size / unit:.3g} {name}" if unit > 1 else f"{size} B"
