"""Neurons by properties of tokens: against statsmodels, plain numpy, and effects planted by hand."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import statsmodels.api as sm
import xarray as xr

import neoscope
from benchmarks.token_null import shares, tokens, values
from neoscope import capture, load_model, open_neurons, open_run, open_statistics
from neoscope.errors import CheckError, InputError, UsageError
from neoscope.reading import by_token
from neoscope.reading.token_features import token_class
from neoscope.statistics import by_length
from neoscope.statistics.token_permutation import frequency_deciles
from neoscope.statistics.token_regression import Tokens
from neoscope.statistics.token_sums import TokenAccumulator, TokenSums
from neoscope.text.documents import SAMPLE_FILE
from support.command import invoke

FIRST = pytest.mark.parametrize("first_positions", [True, False])
COLUMNS = ["length", "log_frequency", "begins_with_space", "class"]


@pytest.fixture(scope="module")
def run(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of two batches with special tokens between its short documents."""
    folder = tmp_path_factory.mktemp("by-token")
    sentences = "".join(SAMPLE_FILE.read_text("utf-8").splitlines()).split(". ")
    text = folder / "short.jsonl"
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in sentences), "utf-8")
    words = ["--model", small_model, "--text", text, "--separator", "eos", "--batches", 2]
    done = invoke("run", folder / "run", *words, "--sequences", 8, "--positions", 64)
    assert done.code == 0, done.err
    return str(folder / "run")


@pytest.fixture(scope="module")
def sums(run: str) -> list[TokenSums]:
    return list(by_token.sums(run))


@pytest.fixture(scope="module")
def table(run: str) -> pd.DataFrame:
    return by_token.features(run)


def occurrences(
    run: str, layer: int, first_positions: bool
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Token ids [row] and values [row, neuron] of all but special tokens."""
    arrays = open_run(run)
    chosen = arrays.token_length.values > 0
    assert not chosen.all()
    chosen[:, 0] &= first_positions
    return arrays.token_ids.values[chosen], arrays[f"MLP_{layer}"].values[chosen].astype(float)


def design(table: pd.DataFrame, ids: npt.NDArray[Any]) -> pd.DataFrame:
    """The features of every occurrence as pandas makes them, with an intercept."""
    rows = pd.get_dummies(table.loc[ids, COLUMNS], columns=["class"], dtype=float, prefix_sep="=")
    rows = rows.loc[:, (rows != 0).any()].drop(columns="class=letters").astype(float)
    return sm.add_constant(rows).rename(columns={"const": "intercept"})


# Regressions


@FIRST
def test_regressions_are_those_of_statsmodels(
    run: str, table: pd.DataFrame, first_positions: bool
) -> None:
    found = by_token.regress(run, table[COLUMNS], first_positions=first_positions)
    for layer in range(3):
        ids, neurons = occurrences(run, layer, first_positions)
        x = design(table, ids)
        assert found.feature.values.tolist() == x.columns.tolist()
        assert (found.occurrences, found.token_types) == (len(ids), len(np.unique(ids)))
        for neuron in range(0, 64, 7):
            ours = found.sel(layer=layer, neuron=neuron)
            y = neurons[:, neuron]
            plain = sm.OLS(y, x).fit()
            kinds = {"groups": ids}
            theirs = sm.OLS(y, x).fit(cov_type="cluster", cov_kwds=kinds, use_t=True)
            np.testing.assert_allclose(ours.coefficient, theirs.params, rtol=1e-8, atol=1e-12)
            np.testing.assert_allclose(ours.standard_error, theirs.bse, rtol=1e-8)
            np.testing.assert_allclose(ours.t, theirs.tvalues, rtol=1e-7)
            np.testing.assert_allclose(ours.p, theirs.pvalues, rtol=1e-6, atol=1e-14)
            np.testing.assert_allclose(ours.naive_t, plain.tvalues, rtol=1e-7)
            np.testing.assert_allclose(ours.r2, theirs.rsquared, rtol=1e-8)
            by_type = sm.OLS(y, pd.get_dummies(ids, dtype=float)).fit()
            np.testing.assert_allclose(ours.r2_token, by_type.rsquared, rtol=1e-8)
            for name in ("partial_correlation", "r2_alone", "r2_added"):
                assert np.isnan(ours[name].sel(feature="intercept"))
            for index, name in enumerate(x.columns[1:], start=1):
                rest = x.drop(columns=name)
                alone = sm.OLS(y, x[["intercept", name]]).fit().rsquared
                np.testing.assert_allclose(ours.r2_alone[index], alone, rtol=1e-7, atol=1e-14)
                added = theirs.rsquared - sm.OLS(y, rest).fit().rsquared
                np.testing.assert_allclose(ours.r2_added[index], added, rtol=1e-7, atol=1e-12)
                both = [sm.OLS(each, rest).fit().resid for each in (y, x[name])]
                expected = np.corrcoef(*both)[0, 1]
                np.testing.assert_allclose(ours.partial_correlation[index], expected, rtol=1e-7)


def test_cr3_is_the_jackknife_over_tokens(run: str, table: pd.DataFrame) -> None:
    columns = ["length", "log_frequency", "begins_with_space"]  # which no token alone decides
    found = by_token.regress(run, table[columns], errors="CR3").sel(layer=1)
    ids, neurons = occurrences(run, 1, True)
    x, types = sm.add_constant(table.loc[ids, columns].to_numpy(float)), np.unique(ids)
    whole = np.linalg.lstsq(x, neurons)[0]
    squares = np.zeros_like(whole)
    for token in types:
        rest = ids != token
        squares += (np.linalg.lstsq(x[rest], neurons[rest])[0] - whole) ** 2
    expected = np.sqrt((len(types) - 1) / len(types) * squares)
    np.testing.assert_allclose(found.standard_error, expected, rtol=1e-6)


def test_from_arrays_from_values_and_from_inputs_they_are_the_same(
    run: str, small_model: Path, table: pd.DataFrame, sums: list[TokenSums]
) -> None:
    """See test_stored_token_sums for what a run keeps itself."""
    arrays, model = open_run(run), load_model(str(small_model))
    chosen = arrays.token_length.values > 0
    first = np.zeros(chosen.shape, bool)
    first[:, 0] = True
    at = (arrays.token_ids.values[chosen], first[chosen])
    inputs = capture(
        model, arrays.token_ids.values, hook="transformer.h.*.mlp.c_fc", hook_side="input"
    )
    outputs = capture(model, arrays.token_ids.values)
    made: dict[str, list[TokenSums]] = {"values": [], "inputs": []}
    for layer, block in enumerate(model.base_model.h):
        of_values = TokenAccumulator(layer)
        of_values.add(outputs[f"MLP_{layer}"].numpy()[chosen], *at)
        made["values"].append(of_values.sums())
        of_inputs = TokenAccumulator(layer, squares=False)
        of_inputs.add(inputs[f"MLP_{layer}"].numpy()[chosen], *at)
        neurons = open_neurons(run).sel(layer=layer)
        moments = (each.values for each in (neurons.tokens, neurons["mean"], neurons.moment2))
        weight, bias = (
            each.detach().numpy() for each in (block.mlp.c_fc.weight, block.mlp.c_fc.bias)
        )
        kept = dataclasses.replace(of_inputs.sums(), weight=weight, bias=bias)
        made["inputs"].append(kept.of_outputs(*moments))
    from_arrays = by_token.regress(sums, table[COLUMNS])
    scale = {"coefficient": from_arrays.standard_error, "t": 1.0, "r2": 1.0, "r2_token": 1.0}
    for name, tolerance in (("values", 1e-4), ("inputs", 1e-4)):
        other = by_token.regress(made[name], table[COLUMNS])
        for variable, unit in scale.items():
            assert (abs(other[variable] - from_arrays[variable]) <= tolerance * unit).all(), name


def test_one_layer_is_that_of_all(run: str, table: pd.DataFrame, sums: list[TokenSums]) -> None:
    both = by_token.regress(sums, table[["length"]])
    xr.testing.assert_identical(by_token.regress(sums[2], table[["length"]]), both.isel(layer=[2]))
    chosen = by_token.sums(run, layers=[2])
    xr.testing.assert_identical(by_token.regress(chosen, table[["length"]]), both.isel(layer=[2]))


@FIRST
def test_shares_of_variance_of_subsets(
    run: str, table: pd.DataFrame, first_positions: bool
) -> None:
    subsets = {"length": ["length"], "class": ["class"], "both": ["length", "class"]}
    found = by_token.r2(run, table, subsets, first_positions=first_positions)
    assert found.dims == ("layer", "subset", "neuron")
    r = by_length.correlation(open_statistics(run), first_positions=first_positions)
    np.testing.assert_allclose(found.sel(subset="length"), r**2, rtol=1e-7, atol=1e-14)
    for name, columns in subsets.items():
        whole = by_token.regress(run, table[columns], first_positions=first_positions)
        np.testing.assert_allclose(found.sel(subset=name), whole.r2, rtol=1e-9)
    with pytest.raises(UsageError, match="no feature 'size'"):
        by_token.r2(run, table, {"size": ["size"]})


def test_a_neuron_that_does_not_vary_has_no_t(table: pd.DataFrame, sums: list[TokenSums]) -> None:
    rows = np.repeat(table.index.to_numpy(), 3)
    activations = np.random.default_rng(0).normal(size=(len(rows), 2)).astype(np.float32)
    activations[:, 1] = 0.1
    accumulator = TokenAccumulator(0)
    accumulator.add(activations, rows, np.arange(len(rows)) % 9 == 0)
    found = by_token.regress(accumulator.sums(), table[["length"]])
    for name in ("standard_error", "t", "p", "naive_t", "r2", "r2_token"):
        assert (
            np.isnan(found[name].sel(neuron=1)).all()
            and np.isfinite(found[name].sel(neuron=0)).all()
        )
    np.testing.assert_allclose(found.coefficient.sel(neuron=1).squeeze(), [0.1, 0], atol=1e-8)
    dealt = by_token.permute(accumulator.sums(), table[["length"]], times=9)
    assert np.isnan(dealt.p.sel(neuron=1)).all() and np.isfinite(dealt.largest).all()
    assert not dealt.above.sel(neuron=1).any()


# Permutations


@pytest.mark.parametrize("within", ["frequency decile", "class", None])
def test_permutations_are_regressions_on_lengths_dealt_out_anew(
    table: pd.DataFrame, sums: list[TokenSums], within: str | None
) -> None:
    found = by_token.permute(sums, table[COLUMNS], within=within, times=20, seed=4)
    regressed = by_token.regress(sums, table[COLUMNS]).sel(feature="length")
    np.testing.assert_allclose(found.t, regressed.t, rtol=1e-8)
    of_layer = Tokens.of(sums[0], first_positions=True)
    dealt = by_token.deal(table[COLUMNS], of_layer, of="length", within=within, times=20, seed=4)
    strata = {
        "frequency decile": frequency_deciles(of_layer.count),
        "class": table.loc[of_layer.token, "class"].cat.codes.to_numpy(),
        None: np.zeros(len(of_layer.token)),
    }[within]
    each = []
    for order in dealt.order:
        np.testing.assert_array_equal(np.sort(order), np.arange(len(order)))
        np.testing.assert_array_equal(strata[order], strata)
        anew = table.loc[of_layer.token, COLUMNS].copy()
        anew["length"] = dealt.values[order]
        each.append(abs(by_token.regress(sums, anew).t.sel(feature="length")))
    assert len({tuple(order) for order in dealt.order.tolist()}) == 20
    t = xr.concat(each, "permutation")
    np.testing.assert_allclose(found.largest, t.max("neuron").T, rtol=1e-8)
    np.testing.assert_allclose(found.p, (1 + (t >= abs(found.t)).sum("permutation")) / 21)
    largest = t.max(("layer", "neuron"))
    np.testing.assert_allclose(
        found.p_largest, (1 + (largest >= abs(found.t)).sum("permutation")) / 21
    )
    assert found.threshold == pytest.approx(float(largest.max()))
    xr.testing.assert_equal(found.above, abs(found.t) > found.threshold)


def test_permutations_depend_on_the_seed_alone(table: pd.DataFrame, sums: list[TokenSums]) -> None:
    def largest(seed: int) -> xr.DataArray:
        return by_token.permute(sums[:1], table[["length"]], times=10, seed=seed).largest

    xr.testing.assert_identical(largest(1), largest(1))
    assert not largest(1).equals(largest(2))


def test_tokens_that_occur_equally_often_are_in_one_decile() -> None:
    count = np.array([1.0] * 25 + [2] * 10 + [3, 4, 5, 6, 7])
    deciles = frequency_deciles(count)
    assert [deciles[count == n].tolist() for n in (1, 2)] == [[0] * 25, [6] * 10]
    assert deciles[-5:].tolist() == [8, 9, 9, 9, 9]


# Nothing where there is nothing, something where there is something


def test_where_length_does_nothing_it_is_seldom_said_to() -> None:
    found = shares(8, columns=["length", "log_frequency"], neurons=100)
    assert found["naive"] > 0.9
    assert found["CR1"] > 0.07
    assert 0.03 <= found["CR3"] <= 0.07
    assert 0.03 <= found["permute"] <= 0.07


def test_an_effect_of_length_is_found_and_one_of_frequency_is_not_called_length() -> None:
    case: dict[str, Any] = {"columns": ["length", "log_frequency"], "tied": 1.0, "neurons": 50}
    found = shares(2, **case, length=0.3)
    assert found["CR3"] > 0.9 and found["permute"] > 0.9 and found["permute, any"] == 1
    of_frequency = shares(4, **case, frequency=0.5)
    assert of_frequency["CR3"] <= 0.07 and of_frequency["permute"] <= 0.08
    alone = shares(2, **{**case, "columns": ["length"]}, frequency=0.5)
    assert alone["CR3"] > 0.9, "without frequency beside it, it is"


# Features


def test_features_are_told_of_every_token_that_occurs(run: str, table: pd.DataFrame) -> None:
    arrays = open_run(run).load()
    ids, length = arrays.token_ids.values, arrays.token_length.values
    special = np.unique(ids[length == 0])
    assert table.index.tolist() == sorted(set(ids.ravel().tolist()) - set(special.tolist()))
    for token, row in table.iterrows():
        at = ids == token
        text = arrays.token_text.values[at][0]
        assert row.token == text and row.length == len(text) == length[at][0]
        assert row.log_frequency == pytest.approx(np.log(at.sum() / (length > 0).sum()))
        assert row.begins_with_space == (text[0] == " ")
        assert row.capital == text.strip()[:1].isupper()
        assert row.split_character == ("\ufffd" in text)
        assert row["class"] == token_class(text)
    assert {"letters", "punctuation"} <= set(table["class"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" the", "letters"),
        ("Ünï", "letters"),
        (" 42", "digits"),
        (" —", "punctuation"),
        ("+=", "punctuation"),
        ("n't", "mixed"),
        ("x1", "mixed"),
        ("3.", "mixed"),
        ("\n\n", "space"),
        (" ", "space"),
        (" слово", "other script"),
        ("aж", "other script"),
        (" \ufffd", "other script"),
    ],
)
def test_classes_of_tokens(text: str, expected: str) -> None:
    assert token_class(text) == expected


def test_frequencies_of_ones_own(run: str, table: pd.DataFrame) -> None:
    by_id = pd.Series(np.arange(1, len(table) + 1), index=table.index)
    expected = np.log(by_id / by_id.sum())
    pd.testing.assert_series_equal(
        by_token.features(run, frequency=by_id).log_frequency, expected, check_names=False
    )
    once = table.drop_duplicates("token")
    by_string = dict.fromkeys(once.token, 2.0)
    given = by_token.features(run, frequency=by_string).log_frequency
    np.testing.assert_allclose(given, -np.log(len(table)))
    del by_string[table.token.iloc[3]]
    with pytest.raises(InputError, match=f"1 tokens .* token {table.index[3]} "):
        by_token.features(run, frequency=by_string)


def test_columns_of_ones_own_join_by_id_or_by_string(
    table: pd.DataFrame, sums: list[TokenSums]
) -> None:
    parity = pd.Series(table.index % 2, index=table.index, name="odd")
    vowels = {text: sum(text.count(vowel) for vowel in "aeiou") for text in set(table.token)}
    mine = table.join(parity).join(pd.Series(vowels, name="vowels"), on="token")
    found = by_token.regress(sums, mine[["token", "length", "odd", "vowels"]])
    assert found.feature.values.tolist() == ["intercept", "length", "odd", "vowels"]


def wrong(table: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, str]]:
    length = table[["length"]]
    return {
        "a constant": (length.assign(one=0.1), "'one' is the same at every token"),
        "collinear": (length.assign(twice=length.length * 2 + 1), "'twice' follows from those"),
        "words": (table[["length"]].assign(word=table.token), "'word' is of str: make it numbers"),
        "no feature": (table[["token"]], "there is no feature"),
        "no row": (length.iloc[5:], f"no row for 5 tokens that occur, token {table.index[0]} "),
        "rows twice": (pd.concat([length, length]), "one row a token id"),
        "missing": (length.where(table.length < 4), "'length' has no finite value at "),
        "no category": (
            length.assign(kind=table["class"].where(table.length > 1)),
            "'kind=.*' has no finite value",
        ),
    }


@pytest.mark.parametrize("name", wrong(pd.DataFrame({"length": [1], "token": "a", "class": "a"})))
def test_features_that_do_not_fit_are_refused(
    name: str, table: pd.DataFrame, sums: list[TokenSums]
) -> None:
    features, message = wrong(table)[name]
    with pytest.raises(UsageError, match=message):
        by_token.regress(sums, features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "size"}, "of='size' must be one of the features: length"),
        ({"within": "size"}, "within='size' must be"),
        ({"within": "length"}, "nothing to permute"),
        ({"times": 0}, "times=0 must be 1 or more"),
        ({"level": 1.0}, "level=1.0 between 0 and 1"),
    ],
)
def test_permutations_that_do_not_fit_are_refused(
    options: dict[str, Any], message: str, table: pd.DataFrame, sums: list[TokenSums]
) -> None:
    with pytest.raises(UsageError, match=message):
        by_token.permute(sums, table[["length"]], **options)


def test_what_cannot_be_asked_is_refused(table: pd.DataFrame, sums: list[TokenSums]) -> None:
    with pytest.raises(UsageError, match="'HC1' must be 'CR1' or 'CR3'"):
        by_token.regress(sums, table[["length"]], errors="HC1")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="an iterator of them serves one call"):
        by_token.regress([], table[["length"]])
    few = TokenAccumulator(0)
    few.add(np.ones((9, 2)), np.full(9, table.index[0]), np.arange(9) == 0)
    with pytest.raises(InputError, match="1 different tokens are too few"):
        by_token.regress(few.sums(), table[["length"]])
    random = np.random.default_rng(0)
    count, features = tokens(random, types=50, occurrences=900)
    other = values(random, count, features, 3)
    with pytest.raises(InputError, match="there are no tokens"):
        by_token.regress(TokenAccumulator(0).sums(), features)
    again = TokenAccumulator(1)
    again.add(np.ones((50, 3)), np.arange(50), np.zeros(50, bool))
    with pytest.raises(UsageError, match="layer 1 has other tokens"):
        by_token.permute([other, again.sums()], features, times=2)


# Runs


def test_a_run_that_has_no_arrays_has_features_and_no_sums(
    small_model: Path, tmp_path: Path
) -> None:
    url = str(tmp_path / "run")
    given = ["--model", small_model, "--dataset", "sample", "--sequences", 4, "--positions", 8]
    assert invoke("run", url, *given, "--no-arrays").code == 0
    assert by_token.features(url).log_frequency.map(np.exp).sum() == pytest.approx(1)
    with pytest.raises(InputError, match="neither arrays .* nor sums by token"):
        by_token.regress(url, by_token.features(url)[["length"]])


def test_a_layer_that_is_not_there_is_refused(run: str) -> None:
    with pytest.raises(InputError, match=r"no layer 7: it has \[0, 1, 2\]"):
        by_token.sums(run, layers=[1, 7])


def test_a_chunk_that_is_missing_is_no_value(
    small_model: Path, tmp_path: Path, table: pd.DataFrame
) -> None:
    url = tmp_path / "run"
    given = ["--model", small_model, "--dataset", "sample", "--sequences", 8, "--positions", 24]
    assert invoke("run", url, *given).code == 0
    (url / "activations.zarr/MLP_1/c/1/0/0").unlink()
    with pytest.raises(
        CheckError, match="layer 1 has values that are not finite; see neoscope verify"
    ):
        list(by_token.sums(str(url)))
    (url / "activations.zarr/token_ids/c/0/0").unlink()
    with pytest.raises(CheckError, match="chunk of token_ids is missing: see neoscope verify"):
        by_token.features(str(url))


def test_blocks_do_not_change_the_sums(
    run: str, sums: list[TokenSums], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neoscope.reading.stored_tokens.BLOCK_BYTES", 1)
    for one, other in zip(by_token.sums(run), sums, strict=True):
        assert one.dump() == other.dump()


def test_it_reads_from_minio(s3_url: str, small_run: list[str]) -> None:
    assert invoke("run", s3_url, *small_run).code == 0
    table = by_token.features(s3_url)[["length", "log_frequency"]]
    assert by_token.regress(s3_url, table).sizes == {"layer": 3, "feature": 3, "neuron": 64}


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, neoscope; assert not {'pandas', 'xarray', 'scipy'} & set(sys.modules); "
        "neoscope.by_token.regress; assert 'pandas' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "by_token" in neoscope.__all__
