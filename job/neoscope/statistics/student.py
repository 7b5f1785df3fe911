"""Two-sided p values of Student's t, without scipy, whose hundred megabytes a light install would carry for
this one function.

In: t and degrees of freedom. Out: p, nine digits of scipy's and more. It does not know what was tested.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

TINY = 1e-300
STEPS = 10_000


def two_sided_p(t: npt.NDArray[np.float64], degrees: float) -> npt.NDArray[np.float64]:
    """The probability of a |t| as large, float64 of the shape of `t`; NaN where t is.

    It is the regularized incomplete beta function I_x(degrees / 2, 1 / 2) at x = degrees / (degrees + t^2)
    (Abramowitz and Stegun, 26.7.1), by its continued fraction (DLMF 8.17.22).
    """
    a, b = degrees / 2, 0.5
    square = np.asarray(t, np.float64) ** 2
    with np.errstate(divide="ignore"):
        x, rest = 1 / (1 + square / degrees), 1 / (1 + degrees / square)
        logarithm = a * -np.log1p(square / degrees) + b * np.log(rest)
    scale = np.exp(logarithm + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))
    # The fraction converges fast on its own side of the mean; on the other I_x(a, b) = 1 - I_1-x(b, a).
    swapped = x > (a + 1) / (a + b + 2)
    p = np.empty_like(x)
    p[~swapped] = scale[~swapped] * _fraction(a, b, x[~swapped]) / a
    p[swapped] = 1 - scale[swapped] * _fraction(b, a, rest[swapped]) / b
    return np.where(np.isnan(square), np.nan, p)


def _fraction(a: float, b: float, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The continued fraction by Lentz's method, for all of `x` at a time."""
    c, d = np.ones_like(x), 1 / _apart(1 - (a + b) * x / (a + 1))
    value = d.copy()
    for m in range(1, STEPS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / _apart(1 + term * d), _apart(1 + term / c)
            value *= d * c
        if np.abs(d * c - 1).max(initial=0, where=np.isfinite(x)) < 1e-15:
            break
    return value


def _apart(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Without zeros, by which the next step would divide."""
    return np.where(np.abs(values) < TINY, TINY, values)
