"""What a run holds in memory at a time. A plan reckons with it too, where torch is not installed."""

from __future__ import annotations

RING = 2  # layers of one pass on their way to the store
