"""What all partitions of a run say together, taken in one at a time: a run may have thousands.

In: a claim, and the roll-ups of its partitions in order. Out: what the manifest says of them. It does not
know the store, nor what is checked.
"""

from __future__ import annotations

from typing import Any

from neoscope.format import chunks
from neoscope.format.chunks import Summary
from neoscope.format.layout import rollup_key
from neoscope.format.rollups import LISTED_DOCUMENTS
from neoscope.format.states import kept
from neoscope.spec import LAYER, canonical_json
from neoscope.statistics import token_lengths


class Totals:
    """The sums of the roll-ups added so far."""

    def __init__(self, claim: dict[str, Any]) -> None:
        self._schemas: dict[str, dict[str, Any]] = claim["arrays"]
        self._names = kept(claim["spec"])
        self._bytes = dict.fromkeys(self._schemas, 0)
        self._digests: dict[str, list[str]] = {name: [] for name in self._schemas}
        self._summaries: dict[str, Summary] = {}
        self._environments: dict[bytes, dict[str, Any]] = {}
        self._documents: list[dict[str, Any]] = []
        self._document_count = 0
        self._cut: list[dict[str, Any]] = []
        self.rollups: dict[str, str] = {}  # content digest by key
        self.states: list[dict[str, Any]] = []  # of each partition, the entries of its statistics
        self.batches: list[int] = []  # of each partition
        self.records = 0
        self.lengths: dict[int, int] = {}
        self.special_tokens = 0
        self.read_back = 0
        self.timings: dict[str, float] = {}

    def add(self, rollup: dict[str, Any]) -> None:
        """Take one partition in."""
        self.rollups[rollup_key(rollup["partition"])] = rollup["content_digest"]
        self.batches.append(rollup["batches"])
        self.records += len(rollup["records"])
        if rollup["batches"]:
            self.states.append({name: rollup[name] for name in self._names})
        counts = {int(length): count for length, count in rollup["length_histogram"].items()}
        self.lengths = token_lengths.merge([self.lengths, counts])
        self.special_tokens += rollup["special_tokens"]
        self.read_back += rollup["read_back"]
        for name, entry in rollup["arrays"].items():
            self._bytes[name] += entry["stored_bytes"]
            self._digests[name].append(entry["digest"])
            summary, before = Summary(**entry["summary"]), self._summaries.get(name)
            self._summaries[name] = before + summary if before else summary
        for step, seconds in rollup["timings"].items():
            self.timings[step] = self.timings.get(step, 0.0) + seconds
        for environment in rollup["environment"]:
            self._environments.setdefault(canonical_json(environment), environment)
        self._document_count += rollup["document_count"]
        self._documents += rollup["documents"][: LISTED_DOCUMENTS - len(self._documents)]
        last = rollup["last_document"]
        if last and last["used"] < last["tokens"]:
            self._cut.append(last)

    def documents(self) -> dict[str, Any]:
        """The first documents, how many there are, and where each partition's last was cut."""
        return {
            "document_count": self._document_count,
            "documents": self._documents,
            "cut": self._cut,
        }

    def arrays(self) -> dict[str, dict[str, Any]]:
        """Each array's schema, stored bytes, digest and extremes."""
        return {name: {**schema, **self._array(name)} for name, schema in self._schemas.items()}

    def _array(self, name: str) -> dict[str, Any]:
        summary = self._summaries[name]
        return {
            "stored_bytes": self._bytes[name],
            "digest": chunks.combine(self._digests[name]),
            "min": summary.min,
            "max": summary.max,
            "mean": summary.mean,
            "std": summary.std,
            "nonfinite": summary.nonfinite,
        }

    def least_values(self) -> int:
        """The number of values that the layer with the fewest has."""
        layers = [each.count for name, each in self._summaries.items() if name.startswith(LAYER)]
        return min(layers, default=0)

    def environments(self) -> list[dict[str, Any]]:
        """What the batches were made with, each kind once."""
        return list(self._environments.values())
