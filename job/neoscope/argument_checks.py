"""What a caller from Python gives, held against what there is: a wrong word or kind is one clear line.

In: an argument by name. Out: its value as Python's own, or an InputError that lists what there is.
The command line's own parser has done this already for options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from pathlib import PurePath
from typing import Any, Literal, get_args, get_origin

from neoscope.errors import InputError


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of the words that there are."""
    if not (isinstance(value, str) and value in choices):
        raise InputError(f"{name}={value!r}: give one of {', '.join(map(repr, choices))}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r}: give True or False")
    return value


def check_number(name: str, value: Any, least: int | None = None) -> int:
    """A whole number of Python's or numpy's, as Python's."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name}={value!r}: give a whole number")
    if least is not None and value < least:
        raise InputError(f"{name}={value}: give {least} or more")
    return int(value)


def check_name(name: str, value: Any) -> str:
    """A name or a path, as a string."""
    if not isinstance(value, str | PurePath):
        raise InputError(f"{name}={value!r}: give a name or a path")
    return str(value)


def check_layers(layers: Iterable[int]) -> tuple[int, ...]:
    """The numbers of layers, ascending, from a list of whole numbers that differ."""
    wanted = "give a list of layers' numbers from 0, each once, such as [0, 3]"
    if isinstance(layers, str | bytes) or not isinstance(layers, Iterable):
        raise InputError(f"layers={layers!r}: {wanted}")
    given = list(layers)
    numbers = {
        int(n) for n in given if isinstance(n, Integral) and not isinstance(n, bool) and n >= 0
    }
    if not numbers or len(numbers) < len(given):
        raise InputError(f"layers={given}: {wanted}")
    return tuple(sorted(numbers))


def check_kind(name: str, value: Any, kind: Any) -> Any:
    """A value of an annotated kind: `str`, `int`, `bool`, a `Literal` of words, or one of these and None."""
    (kind, *_) = [part for part in get_args(kind) if get_origin(kind) is not Literal] or [kind]
    if get_origin(kind) is Literal:
        return check_choice(name, value, get_args(kind))
    checks: dict[Any, Callable[[str, Any], Any]]
    checks = {str: check_name, int: check_number, bool: check_flag}
    return checks[kind](name, value) if kind in checks else value
