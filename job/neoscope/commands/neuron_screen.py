"""One neuron on one screen of a terminal: numbers, a histogram in characters, and passages.

In: what `neuron.describe` gives. Out: lines of text, with or without colours. It reads nothing.
"""

from __future__ import annotations

from typing import Any

BLOCKS = " ▁▂▃▄▅▆▇█"
HEIGHT = 5  # lines of the histogram
LABEL = 12  # columns before the histogram and before a passage's tokens
NAMES = {
    "firing": "fires",
    "mean": "mean",
    "std": "std",
    "skewness": "skewness",
    "kurtosis": "kurtosis",
    "min": "least",
    "max": "greatest",
    "length_correlation": "with length",
}
# Shades of 256-colour terminals, of values above and below 0, from nothing to the most.
ABOVE = (None, 58, 94, 130, 166, 202)
BELOW = (None, 17, 18, 19, 20, 21)
RESET = "\x1b[0m"


def screen(found: dict[str, Any], *, width: int, colour: bool, lowest: bool = False) -> list[str]:
    """The neuron in lines of at most `width` columns."""
    random = "; weights are RANDOM" if found["weights"] == "random" else ""
    which = "lowest" if lowest else "highest"
    return [
        f"layer {found['layer']}, neuron {found['neuron']} of {found['model']}, at "
        f"{found['tokens']:,} tokens{random}",
        "",
        *_facts(found),
        "",
        *_histogram(found["histogram"], width),
        "",
        f"{which} values, one of each sequence"
        + ("" if found[which] and found[which][0]["values"] else " (no arrays, so no shades)"),
        *(_passage(passage, width, colour) for passage in found[which]),
    ]


def _facts(found: dict[str, Any]) -> list[str]:
    """Two facts a line, each with the share of the layer's neurons that have less."""
    cells = []
    for name, words in NAMES.items():
        value, rank = found["facts"][name], found["ranks"][name]
        shown = "none" if value is None else f"{value:.1%}" if name == "firing" else f"{value:.3g}"
        more = "" if rank is None else f"above {rank:.0%}"
        cells.append(f"{words:<{LABEL}}{shown:>8}  {more:<12}")
    half = len(cells) // 2
    rows = [
        f"{one}  {other}".rstrip() for one, other in zip(cells[:half], cells[half:], strict=True)
    ]
    return [*rows, f"(above that share of its layer's {found['neurons']:,} neurons)"]


def _histogram(histogram: dict[str, Any], width: int) -> list[str]:
    """Columns of blocks, each of as many bins as make them fit."""
    counts = histogram["counts"]
    if not counts:
        return ["no tokens"]
    together = -(-len(counts) // max(1, min(64, width - LABEL)))
    columns = [sum(counts[at : at + together]) for at in range(0, len(counts), together)]
    most, steps = max(columns), len(BLOCKS) - 1
    heights = [-(-column * HEIGHT * steps // most) for column in columns]  # what is there shows
    rows = []
    for row in reversed(range(HEIGHT)):
        label = f"{most:,}" if row == HEIGHT - 1 else "0" if row == 0 else ""
        blocks = (BLOCKS[max(0, min(steps, height - row * steps))] for height in heights)
        rows.append(f"{label:>{LABEL - 2}}  {''.join(blocks)}".rstrip())
    low, high = histogram["left"][0], histogram["right"][-1]
    ends = ["below -16" if low is None else f"{low:g}", "above 16" if high is None else f"{high:g}"]
    gap = max(1, len(columns) - len(ends[0]) - len(ends[1]))
    return [*rows, " " * LABEL + ends[0] + " " * gap + ends[1]]


def _passage(passage: dict[str, Any], width: int, colour: bool) -> str:
    """The value, and as many tokens around the peak as fit."""
    tokens = [printable(token) for token in passage["tokens"]]
    peak = passage["peak"]
    tokens[peak] = f"«{tokens[peak]}»"
    first, last, used = peak, peak + 1, LABEL + len(tokens[peak])
    # Two before for one behind: what came before is what the neuron has seen.
    for step in range(3 * len(tokens)):
        before = step % 3 < 2
        if before and first > 0 and used + len(tokens[first - 1]) <= width:
            first, used = first - 1, used + len(tokens[first - 1])
        if not before and last < len(tokens) and used + len(tokens[last]) <= width:
            last, used = last + 1, used + len(tokens[last])
    values = passage["values"]
    if colour and values:
        most = max(map(abs, values)) or 1.0
        tokens = [_shaded(token, value / most) for token, value in zip(tokens, values, strict=True)]
    if colour:
        tokens[peak] = f"\x1b[1;4m{tokens[peak]}{RESET}"
    return f"{passage['value']:>{LABEL - 2}.3f}  {''.join(tokens[first:last])}"


def _shaded(token: str, strength: float) -> str:
    """A token on a ground of its value; `strength` is from -1 to 1."""
    shades = ABOVE if strength > 0 else BELOW
    shade = shades[round(abs(strength) * (len(shades) - 1))]
    return token if shade is None else f"\x1b[97;48;5;{shade}m{token}{RESET}"


def printable(text: str) -> str:
    """Text in which nothing moves the cursor or speaks to the terminal."""
    return "".join(each if each.isprintable() else "↵" if each == "\n" else "·" for each in text)
