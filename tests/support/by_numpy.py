"""Statistics by token length as numpy has them, to hold ours against."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from neoscope.statistics.length_cells import HALF

EDGES = np.arange(-HALF, HALF + 1) / 50


def assert_as_numpy(
    arrays: dict[str, Any], values: npt.NDArray[Any], lengths: npt.NDArray[np.uint16], layer: int
) -> None:
    """Statistics of one layer against numpy's own: counts exactly, sums to 1e-12 of their size."""
    first = np.zeros(lengths.shape, bool)
    first[:, 0] = True
    wide = values.astype(np.float64)
    for place in (False, True):
        for index, length in enumerate(arrays["length"]):
            chosen = wide[(lengths == length) & (first == place)]
            assert arrays["tokens"][int(place), index] == len(chosen)
            counts = np.histogram(chosen, [-np.inf, *EDGES, np.inf])[0]
            np.testing.assert_array_equal(arrays["histogram"][layer, int(place), index], counts)
            total = arrays["total"][layer, int(place), index]
            scale = np.abs(chosen).sum(axis=0)
            assert (np.abs(total - chosen.sum(axis=0)) <= 1e-12 * scale).all()
            squares = ((chosen - chosen.mean(axis=0)) ** 2).sum(axis=0) if len(chosen) else 0
            deviation = arrays["squared_deviation"][layer, int(place), index]
            np.testing.assert_allclose(deviation, squares, rtol=1e-9, atol=1e-12)
