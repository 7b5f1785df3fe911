"""Partitions share the text, and the last one commits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.command import invoke
from support.making import SEQUENCES, SIZE, arguments, nothing_finished, values, words
from support.places import body


def test_partitions_share_the_text_and_the_last_one_commits(
    small_model: Path, place: str, tmp_path: Path, tokenizer: Any
) -> None:
    shares = {"0.jsonl": words(80), "1.jsonl": "other " + words(80)}
    for name, text in shares.items():
        (tmp_path / name).write_text(json.dumps({"id": name, "text": text}) + "\n")
    given = arguments(small_model, dataset=None, batches=1, partitions=2)
    given += ["--text", str(tmp_path / "0.jsonl"), "--text", str(tmp_path / "1.jsonl")]
    first = invoke("run", place, *given, "--partition", "1")
    assert first.code == 0, first.err
    assert "others are missing" in first.out
    assert nothing_finished(place)
    second = invoke("run", place, *given, "--partition", "auto", JOB_COMPLETION_INDEX="0")
    assert second.code == 0, second.err
    stored = values(place, "token_ids")
    for partition, text in enumerate(shares.values()):
        rows = stored[SEQUENCES * partition : SEQUENCES * (partition + 1)]
        assert rows.ravel().tolist() == tokenizer(text)["input_ids"][:SIZE]
    found = json.loads(body(place, "manifest.json"))
    assert [entry["partition"] for entry in found["text"]["documents"]] == [0, 1]
    assert found["partitions"] == 2
