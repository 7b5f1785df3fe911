"""What a run holds in memory at a time. A plan reckons with it too, where torch is not installed.

In: an array's schema. Out: numbers of buffers. It holds nothing itself.
"""

from __future__ import annotations

import math

from neoscope.format.arrays import ArraySchema
from neoscope.storage.store import REQUESTS_IN_FLIGHT

# Three layers of 16 x 512 tokens of GPT-Neo 125M: 48 chunks, so that every connection has one while a
# buffer is filled. Two layers at least, whatever they take: one is stored while the next is computed.
RING_BYTES = 320_000_000
LEAST_SLOTS = 2


def ring_slots(schema: ArraySchema, sequences: int) -> int:
    """How many buffers for `sequences` sequences of a layer there are: what RING_BYTES hold, and no more than
    keep every connection busy."""
    count = sequences // schema.chunks[0] * math.prod(schema.grid[1:])
    wanted = math.ceil(2 * REQUESTS_IN_FLIGHT / count)
    return max(LEAST_SLOTS, min(RING_BYTES // (count * schema.chunk_bytes), wanted))
