"""What can be told of a token from its string, how often it occurs, and how a table becomes numbers.

In: strings and counts by token id. Out: a pandas table, one row a token, and a matrix of its columns.
It does not know the run, nor the activations.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from neoscope.errors import InputError, UsageError

TOKEN = "token"  # the column of strings: a label, and no feature
CLASSES = ("letters", "digits", "punctuation", "mixed", "space", "other script")
BROKEN = "\ufffd"  # what bytes that are no whole character decode to


def table(
    token: npt.NDArray[np.int64],
    strings: npt.NDArray[np.object_],
    lengths: npt.NDArray[np.int64],
    frequency: npt.NDArray[np.float64],
) -> pd.DataFrame:
    """One row a token; see `by_token.features`. All are [token]."""
    texts = pd.Series(strings, dtype="str")
    found = pd.DataFrame(
        {
            TOKEN: texts,
            "length": lengths.astype(np.int64),
            "log_frequency": np.log(frequency / frequency.sum()),
            "begins_with_space": [text.startswith(" ") for text in strings],
            "class": pd.Categorical([token_class(text) for text in strings], CLASSES),
            "capital": [text.lstrip()[:1].isupper() for text in strings],
            "split_character": [BROKEN in text for text in strings],
        }
    )
    found.index = pd.Index(token, name="token_id")
    return found


def token_class(text: str) -> str:
    """One of CLASSES, white space around it left out: `letters` are Latin ones, `punctuation` is all
    that is neither letter nor digit, `other script` has a letter of another, or part of a character."""
    text = text.strip()
    if not text:
        return "space"
    letters = [character for character in text if character.isalpha()]
    if BROKEN in text or not all(map(_is_latin, letters)):
        return "other script"
    if len(letters) == len(text):
        return "letters"
    if text.isdigit():
        return "digits"
    return "mixed" if letters or any(map(str.isdigit, text)) else "punctuation"


def _is_latin(letter: str) -> bool:
    return letter.isascii() or unicodedata.name(letter, "").startswith("LATIN")


def frequencies(
    given: Mapping[Any, float] | pd.Series, token: npt.NDArray[np.int64], strings: list[str]
) -> npt.NDArray[np.float64]:
    """The user's frequency of every token, by its id or by its string; raises InputError for one that has
    none above zero."""
    by = pd.Series(given, dtype=np.float64)
    labels = token.tolist() if pd.api.types.is_integer_dtype(by.index.dtype) else strings
    found: npt.NDArray[np.float64] = by.reindex(labels).to_numpy()
    bad = np.flatnonzero(~(np.isfinite(found) & (found > 0)))
    if len(bad):
        raise InputError(
            f"{len(bad)} tokens of the run have no frequency above 0, token {token[bad[0]]} "
            f"({strings[bad[0]]!r}) for one: count them, or add a small number to every count"
        )
    return found


def matrix(
    features: pd.DataFrame, token: npt.NDArray[np.int64]
) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Names of features, and their values [token, feature] at these tokens.

    Numbers and booleans are taken as they are. A category becomes a column of zeros and ones for
    each of its values that these tokens have, but the first, which the others are told against:
    `class=digits`. The column `token` is a label. Raises UsageError for other columns of text, for tokens
    that have no row, and for values that are missing or not finite.
    """
    if not features.index.is_unique:
        raise UsageError("features must have one row a token id, and have several of some")
    missing = np.setdiff1d(token, features.index.to_numpy())
    if len(missing):
        raise UsageError(
            f"features have no row for {len(missing)} tokens that occur, token {missing[0]} for one: "
            "join columns to by_token.features(url), whose index is the token id"
        )
    columns: dict[str, Any] = {}
    for name, column in features.loc[token].items():
        if isinstance(column.dtype, pd.CategoricalDtype):
            for value in column.cat.remove_unused_categories().cat.categories[1:]:
                columns[f"{name}={value}"] = np.where(column.isna(), np.nan, column == value)
        elif pd.api.types.is_bool_dtype(column) or pd.api.types.is_numeric_dtype(column):
            columns[str(name)] = column
        elif name != TOKEN:
            raise UsageError(
                f"the feature {name!r} is of {column.dtype}: make it numbers or astype('category')"
            )
    if not columns:
        raise UsageError("there is no feature: give at least one column of numbers")
    values = np.column_stack([np.asarray(each, np.float64) for each in columns.values()])
    rows, bad = np.nonzero(~np.isfinite(values))
    if len(rows):
        raise UsageError(
            f"the feature {list(columns)[bad[0]]!r} has no finite value at {len(np.unique(rows))} tokens "
            f"that occur, token {token[rows[0]]} for one"
        )
    return list(columns), values
