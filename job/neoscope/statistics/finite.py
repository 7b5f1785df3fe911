"""Whether sums show that every value that went into them was finite.

In: sums by layer. Out: nothing, or the first layer whose sums are not finite.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from neoscope.errors import CheckError


def check_finite(layers: Mapping[str, int], sums: torch.Tensor) -> None:
    """Raise CheckError where sums [layer, ...] are not finite, naming the first layer: those behind it
    follow from it. The host waits for the device, so this is for the end of a batch."""
    finite = torch.isfinite(sums).flatten(1).all(dim=1).cpu()
    bad = [name for name, index in layers.items() if not finite[index]]
    if bad:
        raise CheckError(
            f"{bad[0]} has values that are not finite: use --precision float32 or "
            "--store-dtype float32, or look at the weights"
        )
