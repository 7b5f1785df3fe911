"""How much of what is called length is the order of the text.

Random weights know nothing of length, so 5 % of neurons are to be called significant at 0.05. The tokens
of a run are given to such a model twice, as they stand and in random order, and what is printed is the share
of neurons for which length, beside frequency, has |t| > 1.96.

    neoscope run OUTPUT --weights random --dataset sample
    python tests/benchmarks/token_order.py OUTPUT
"""

from __future__ import annotations

import sys

import numpy as np

from neoscope import capture, load_model, open_run
from neoscope.reading import by_token
from neoscope.statistics.token_sums import TokenAccumulator

LAYERS = (0, 6)
NEURONS = 1024  # of each layer, from the first on


def main(url: str) -> None:
    table = by_token.features(url)[["length", "log_frequency"]]
    text = open_run(url).token_ids.values
    shuffled = np.random.default_rng(0).permutation(text.ravel()).reshape(text.shape)
    first = np.zeros(text.shape, bool)
    first[:, 0] = True
    model = load_model(weights="random")
    for order, ids in (("text", text), ("random", shuffled)):
        for layer, values in zip(LAYERS, capture(model, ids, layers=LAYERS).values(), strict=True):
            accumulator = TokenAccumulator(layer)
            rows = values[..., :NEURONS].flatten(0, 1).cpu().numpy()
            accumulator.add(rows, ids.ravel(), first.ravel())
            fit = by_token.regress(accumulator.sums(), table, errors="CR3").sel(feature="length")
            naive, honest = (float((abs(t) > 1.96).mean()) for t in (fit.naive_t, fit.t))
            print(f"{order:<7} layer {layer}  naive {naive:.3f}  CR3 {honest:.3f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
