"""The command end to end: what a run leaves, read with libraries that are not ours."""

from __future__ import annotations

from conftest import neoscope


def test_a_run_is_whole_and_says_so(place: str, tiny_run: list[str]) -> None:
    done = neoscope("run", place, *tiny_run)
    assert done.code == 0, done.err
    again = neoscope("run", place, *tiny_run)
    assert again.code == 0
    assert "already holds this run" in again.err
