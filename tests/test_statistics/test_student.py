"""Student's t against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import stdtr

from neoscope.statistics.student import two_sided_p


@pytest.mark.parametrize("degrees", [1, 2, 3, 10, 99, 5_000, 50_256])
def test_p_is_that_of_scipy(degrees: int) -> None:
    size = np.concatenate([[0, 1e-12, 1e-6], np.geomspace(1e-3, 35, 2000)])
    t = np.stack([size, -size])
    expected = 2 * stdtr(degrees, -np.abs(t))
    np.testing.assert_allclose(two_sided_p(t, degrees), expected, rtol=1e-9)


def test_what_is_no_number_has_no_p() -> None:
    found = two_sided_p(np.array([np.nan, np.inf, 0.0]), 7)
    np.testing.assert_array_equal(found, [np.nan, 0, 1])
