"""A plan in words, with time and price at the rates that are given.

In: a plan, and what machine and storage do and cost. Out: lines for a person. It has no rates of its own.
"""

from __future__ import annotations

import dataclasses

from neoscope.commands.plan import Part, Plan
from neoscope.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a machine does in a second, and what things cost in one currency; None where not given.

    Raises UsageError for a rate that says nothing without others.
    """

    tflops: float | None = None
    mb_per_second: float | None = None
    per_hour: float | None = None
    per_gb_month: float | None = None
    per_1000_puts: float | None = None
    per_1000_gets: float | None = None

    def __post_init__(self) -> None:
        time = {"--tflops": self.tflops, "--mb-per-second": self.mb_per_second}
        missing = [option for option, value in time.items() if value is None]
        given = [
            f"{option} {value:g}"
            for option, value in {**time, "--per-hour": self.per_hour}.items()
            if value is not None
        ]
        if given and missing:
            also = " and ".join(missing)
            raise UsageError(
                f"{' and '.join(given)} gives no time and no price without {also}: give {also} too"
            )


def lines(found: Plan, rates: Rates) -> list[str]:
    """A plan for a person to read."""
    spec, requests = found.spec, found.requests
    sequences = spec.sequences * spec.total_batches
    rows = [
        f"{spec.model}: {len(found.shape.layers)} layers of {found.shape.neurons:,} neurons, "
        f"{_gb(found.shape.weight_bytes)} of weights in {spec.precision}",
        f"tokens     {spec.tokens_per_batch * spec.total_batches:,} in {sequences:,} sequences of "
        f"{spec.positions}: {_count(spec.partitions, 'partition')} of "
        f"{_count(spec.batches, 'batch', 'es')}",
    ]
    for part in found.parts:
        rows.append(f"    {part.what:<30}{part.objects:>12,} objects  {_size(part):>24}")
    before = " before compression" if spec.compression != "none" else ""
    return [
        *rows,
        f"objects    {found.objects:,}, {_gb(found.size)} of arrays{before}, "
        f"about {_gb(found.stored)} in all",
        f"requests   {requests.puts:,} PUT, {requests.gets:,} GET and HEAD, {requests.lists:,} LIST, "
        f"{requests.deletes:,} DELETE",
        f"memory     about {_gb(found.host_memory)} of each worker's host; with a GPU about "
        f"{_gb(found.device_memory)} of its own",
        *_time(found, rates),
        *_price(found, rates),
    ]


def seconds(found: Plan, rates: Rates) -> float | None:
    """Of one worker, whose storing goes on beside computing; None without both rates."""
    if rates.tflops is None or rates.mb_per_second is None:
        return None
    computing = found.flops / (rates.tflops * 1e12)
    storing = found.sent / found.spec.total_batches / (rates.mb_per_second * 1e6)
    return found.spec.batches * max(computing, storing)


def _time(found: Plan, rates: Rates) -> list[str]:
    work = (
        f"{found.flops / 1e12:.2f} TFLOP and {_gb(found.sent / found.spec.total_batches)} a batch"
    )
    spent = seconds(found, rates)
    if spent is None:
        return [f"time       {work}: give --tflops and --mb-per-second to know"]
    return [f"time       {work}: {_duration(spent)} of {_count(found.spec.partitions, 'worker')}"]


def _price(found: Plan, rates: Rates) -> list[str]:
    """Each price that the rates give."""
    prices: dict[str, float] = {}
    spent = seconds(found, rates)
    if rates.per_hour is not None and spent is not None:
        prices["machines"] = rates.per_hour * found.spec.partitions * spent / 3600
    if rates.per_1000_puts is not None:
        prices["PUT and LIST"] = (
            rates.per_1000_puts * (found.requests.puts + found.requests.lists) / 1000
        )
    if rates.per_1000_gets is not None:
        prices["GET and HEAD"] = rates.per_1000_gets * found.requests.gets / 1000
    if rates.per_gb_month is not None:
        prices["a month of storage"] = rates.per_gb_month * found.stored / 1e9
    if not prices:
        return []
    return ["price      " + ", ".join(f"{what} {price:,.4f}" for what, price in prices.items())]


def _size(part: Part) -> str:
    if part.about:
        return f"about {part.about / 1e6:,.0f} MB"
    return f"{part.size:,} bytes" if part.size else "JSON"


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number:,} {what}{plural if number > 1 else ''}"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"


def _duration(spent: float) -> str:
    return f"{spent / 3600:,.1f} h" if spent >= 3600 else f"{spent:,.1f} s"
