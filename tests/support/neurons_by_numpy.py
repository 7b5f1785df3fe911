"""What numpy says of each neuron of a layer, to hold ours against."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from neoscope.statistics.neurons import HALF

EDGES = np.arange(-HALF, HALF + 1) / 8


def assert_as_numpy(
    arrays: dict[str, npt.NDArray[Any]],
    values: npt.NDArray[Any],
    lengths: npt.NDArray[np.uint16],
    layer: int,
) -> None:
    """Hold merged arrays of one layer against its values [sequence, position, neuron] at tokens of these
    lengths: counts and contexts exactly, moments to 1e-9 of what they would be without a sign."""
    there = lengths > 0
    for first in (0, 1):
        chosen = there.copy()
        chosen[:, slice(1, None) if first else slice(0, 1)] = False
        found = {name: array[layer, first] for name, array in arrays.items() if array.ndim > 1}
        some = values[chosen]
        assert arrays["tokens"][first] == len(some)
        np.testing.assert_array_equal(found["firing"], (some > 0).sum(axis=0))
        for neuron in range(values.shape[2]):
            counts = np.histogram(some[:, neuron], [-np.inf, *EDGES, np.inf])[0]
            np.testing.assert_array_equal(found["histogram"][neuron], counts)
        _assert_moments(found, some.astype(np.float64))
        _assert_contexts(found, values, chosen)


def _assert_moments(found: dict[str, npt.NDArray[Any]], wide: npt.NDArray[np.float64]) -> None:
    if not len(wide):
        for name in ("mean", "moment2", "moment3", "moment4", "min", "max"):
            assert np.isnan(found[name]).all()
        return
    np.testing.assert_array_equal(found["min"], wide.min(axis=0))
    np.testing.assert_array_equal(found["max"], wide.max(axis=0))
    mean = wide.mean(axis=0)
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-12, atol=1e-12 * np.abs(wide).max())
    for order in (2, 3, 4):
        moment, size = ((wide - mean) ** order).mean(axis=0), (np.abs(wide - mean) ** order).mean(0)
        assert (np.abs(found[f"moment{order}"] - moment) <= 1e-9 * size + 1e-300).all(), order


def _assert_contexts(
    found: dict[str, npt.NDArray[Any]], values: npt.NDArray[Any], chosen: npt.NDArray[np.bool_]
) -> None:
    """Every sequence's extreme in Python's own order: by value, then by token."""
    positions = values.shape[1]
    sequences = np.flatnonzero(chosen.any(axis=1))
    kept = found["highest_value"].shape[-1]
    for neuron in range(values.shape[2]):
        for name, sign in (("highest", -1), ("lowest", 1)):
            best = sorted(
                min(
                    (sign * float(values[s, p, neuron]), int(s) * positions + int(p))
                    for p in np.flatnonzero(chosen[s])
                )
                for s in sequences
            )[:kept]
            tokens = [token for _, token in best] + [-1] * (kept - len(best))
            assert found[f"{name}_token"][neuron].tolist() == tokens
            expected = [values.reshape(-1, values.shape[2])[t, neuron] for t in tokens if t >= 0]
            value = found[f"{name}_value"][neuron]
            assert value[: len(best)].tobytes() == np.array(expected, np.float32).tobytes()
            assert np.isnan(value[len(best) :]).all()
