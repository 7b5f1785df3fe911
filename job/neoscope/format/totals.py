"""What all records of a run say together, taken in one at a time: a run may have thousands.

In: a claim, and its records in order of partitions and batches. Out: what the manifest says of them. It does
not know the store, nor what is checked.
"""

from __future__ import annotations

from typing import Any

from neoscope.format import chunks
from neoscope.format.chunks import Summary
from neoscope.format.layout import record_key
from neoscope.spec import LAYER, canonical_json
from neoscope.statistics import token_lengths

LISTED_DOCUMENTS = 1000


class Totals:
    """The sums of the records added so far."""

    def __init__(self, claim: dict[str, Any]) -> None:
        self._schemas: dict[str, dict[str, Any]] = claim["arrays"]
        self._bytes = dict.fromkeys(self._schemas, 0)
        self._digests: dict[str, list[str]] = {name: [] for name in self._schemas}
        self._summaries: dict[str, Summary] = {}
        self._environments: dict[bytes, dict[str, Any]] = {}
        self._documents: list[dict[str, Any]] = []
        self._document_count = 0
        self._last_document: dict[int, dict[str, Any]] = {}
        self.records: dict[str, str] = {}  # content digest by key
        self.last: dict[int, dict[str, Any]] = {}  # record by partition
        self.lengths: dict[int, int] = {}
        self.special_tokens = 0
        self.read_back = 0
        self.timings: dict[str, float] = {}

    def add(self, record: dict[str, Any]) -> None:
        """Take one record in."""
        partition = record["partition"]
        self.records[record_key(partition, record["batches"])] = record["content_digest"]
        self.last[partition] = record
        counts = {int(length): count for length, count in record["length_histogram"].items()}
        self.lengths = token_lengths.merge([self.lengths, counts])
        self.special_tokens += record["special_tokens"]
        self.read_back += len(record["read_back"])
        for name, entry in record["arrays"].items():
            self._bytes[name] += sum(part["size"] for part in entry["chunks"])
            self._digests[name] += [part["digest"] for part in entry["chunks"]]
            summary, before = Summary(**entry["summary"]), self._summaries.get(name)
            self._summaries[name] = before + summary if before else summary
        for step, seconds in record["timings"].items():
            self.timings[step] = self.timings.get(step, 0.0) + seconds
        self._environments.setdefault(canonical_json(record["environment"]), record["environment"])
        for span in record["documents"]:
            self._add_document(partition, span)

    def _add_document(self, partition: int, span: dict[str, Any]) -> None:
        """Each document counts once, although batches cut it."""
        if span["start"] and partition in self._last_document:
            self._last_document[partition]["used"] = span["stop"]
            return
        document = {
            "id": span["id"],
            "tokens": span["tokens"],
            "used": span["stop"],
            "partition": partition,
        }
        self._last_document[partition] = document
        self._document_count += 1
        if len(self._documents) < LISTED_DOCUMENTS:
            self._documents.append(document)

    def documents(self) -> dict[str, Any]:
        """The first documents, how many there are, and where each partition's last was cut."""
        last = self._last_document.values()
        return {
            "document_count": self._document_count,
            "documents": self._documents,
            "cut": [document for document in last if document["used"] < document["tokens"]],
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
