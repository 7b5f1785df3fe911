"""How often a property of tokens is said to matter where it does not, and where it does.

Token types are drawn by Zipf's law, and each has a mean of its own in every neuron, beside what each
occurrence has. Neurons are of three kinds: nothing more; a planted effect of token length; a planted
effect of log frequency, with which length goes in half of the data sets. What is printed is the share of
neurons that are called significant at 0.05 for length, and of data sets in which `permute` has any neuron
above its threshold.

    python tests/benchmarks/token_null.py [data sets]
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pandas as pd

from neoscope.reading import by_token
from neoscope.statistics.token_sums import TokenSums


def tokens(
    random: np.random.Generator, *, types: int = 5000, occurrences: int = 200_000, tied: float = 0
) -> tuple[np.ndarray, pd.DataFrame]:
    """How often each type occurs, and its features: `tied` is what length loses for each unit of log
    frequency."""
    zipf = 1 / np.arange(1, types + 1)
    count = random.multinomial(occurrences, zipf / zipf.sum())
    count = count[count > 0]
    log = np.log(count / count.sum())
    length = 1 + random.poisson(5, len(count)) - tied * (log - log.mean())
    return count, pd.DataFrame({"length": length, "log_frequency": log})


def values(
    random: np.random.Generator,
    count: np.ndarray,
    features: pd.DataFrame,
    neurons: int,
    *,
    length: float = 0,
    frequency: float = 0,
) -> TokenSums:
    """Sums by token as normal values give them, drawn as such: a token's own mean and each occurrence's own
    part have a variance of 1."""
    own = random.normal(size=(len(count), neurons))
    effect = length * features.length + frequency * features.log_frequency
    mean = own + effect.to_numpy()[:, None]
    total = count[:, None] * mean + np.sqrt(count)[:, None] * random.normal(size=mean.shape)
    inside = random.chisquare(count.sum() - len(count), neurons)
    squares = np.stack([inside + (total**2 / count[:, None]).sum(axis=0), np.zeros(neurons)])
    first = np.zeros(len(count), bool)
    return TokenSums(0, np.arange(len(count)), first, count, np.zeros((2, neurons)), total, squares)


def called(sums: TokenSums, features: pd.DataFrame, *, times: int = 199) -> dict[str, float]:
    """The share of neurons for which length is called significant at 0.05, by way of judging."""
    fits = {
        errors: by_token.regress(sums, features, errors=errors).sel(feature="length")
        for errors in ("CR1", "CR3")
    }
    dealt = by_token.permute(sums, features, times=times)
    return {
        "naive": float((abs(fits["CR1"].naive_t) > 1.96).mean()),
        "CR1": float((fits["CR1"].p < 0.05).mean()),
        "CR3": float((fits["CR3"].p < 0.05).mean()),
        "permute": float((dealt.p <= 0.05).mean()),
        "permute, any": float(dealt.above.any()),
    }


def shares(
    sets: int,
    *,
    columns: list[str],
    seed: int = 0,
    neurons: int = 40,
    tied: float = 0,
    types: int = 5000,
    occurrences: int = 200_000,
    **effects: float,
) -> dict[str, float]:
    """The mean of `called` over data sets, for features that are these columns."""
    found = []
    for number in range(sets):
        random = np.random.default_rng([seed, number])
        count, features = tokens(random, types=types, occurrences=occurrences, tied=tied)
        found.append(called(values(random, count, features, neurons, **effects), features[columns]))
    return pd.DataFrame(found).mean().to_dict()


def main() -> None:
    sets = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    both = ["length", "log_frequency"]
    cases = {
        "no effect, length alone": {"columns": ["length"]},
        "no effect, length and frequency": {"columns": both},
        "frequency matters, length goes with it, length alone": {
            "columns": ["length"],
            "tied": 1.0,
            "frequency": 0.5,
        },
        "frequency matters, length goes with it, both": {
            "columns": both,
            "tied": 1.0,
            "frequency": 0.5,
        },
        "length matters by 0.1 a character, both": {"columns": both, "length": 0.1},
        "length matters by 0.3 a character, both": {"columns": both, "length": 0.3},
    }
    print(f"{sets} data sets of 40 neurons, 5,000 types by Zipf's law, 200,000 occurrences")
    for name, case in cases.items():
        begin = time.perf_counter()
        row = shares(sets, **case)
        words = "  ".join(f"{way} {share:6.3f}" for way, share in row.items())
        print(f"{name:<54} {words}  ({time.perf_counter() - begin:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
