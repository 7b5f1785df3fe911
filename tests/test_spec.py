"""The spec: what decides the result is in the fingerprint, and nothing else; what does not fit is said."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from neoscope.commands.cli import cli, unknown_variables
from neoscope.errors import UsageError
from neoscope.spec import (
    FINEWEB,
    FINEWEB_CONFIG,
    GPT_NEO_125M,
    RunSpec,
    TextFile,
    canonical_json,
    differing_fields,
    full_name,
    make_spec,
)

FILE = TextFile("a.jsonl", 10, "0" * 32)
OTHER_VALUES: dict[str, Any] = {
    "weights": "random",
    "separator": "eos",
    "precision": "bfloat16",
    "store_dtype": "float16",
    "forward": "reference",
    "compression": "lz4",
    "hook": "model.layers.*.mlp",
    "hook_side": "input",
    "layers": (0, 2),
    "sequences_per_pass": 4,
    "text": (FILE,),
}


def other(field: dataclasses.Field[Any]) -> Any:
    """Another value for a field of the spec than its default."""
    if field.name in OTHER_VALUES:
        return OTHER_VALUES[field.name]
    if isinstance(field.default, bool):
        return not field.default
    if isinstance(field.default, int) or field.name == "seed":
        return (field.default or 0) + 3
    return "something else"


@pytest.mark.parametrize("field", dataclasses.fields(RunSpec), ids=lambda field: field.name)
def test_every_field_is_in_the_fingerprint(field: dataclasses.Field[Any]) -> None:
    spec = RunSpec(arrays=field.name != "token_sums")  # which goes with none alone
    changed = dataclasses.replace(spec, **{field.name: other(field)})
    assert changed.fingerprint != spec.fingerprint
    lines = differing_fields(changed.identity(), spec.identity())
    assert [line.split()[0] for line in lines] == [field.name]


def test_a_text_file_is_what_it_holds_not_what_it_is_called() -> None:
    spec = make_spec(text=(FILE,))
    renamed = make_spec(text=(dataclasses.replace(FILE, name="b.jsonl"),))
    grown = make_spec(text=(dataclasses.replace(FILE, size=11),))
    rewritten = make_spec(text=(dataclasses.replace(FILE, digest="1" * 32),))
    assert renamed.fingerprint == spec.fingerprint
    assert renamed.to_json() != spec.to_json()
    assert len({spec.fingerprint, grown.fingerprint, rewritten.fingerprint}) == 3


def test_the_order_of_text_files_is_part_of_the_spec() -> None:
    second = dataclasses.replace(FILE, digest="1" * 32)
    assert make_spec(text=(FILE, second)).fingerprint != make_spec(text=(second, FILE)).fingerprint


def test_the_fingerprint_is_the_digest_of_the_published_form() -> None:
    """Anybody can compute it: sorted keys, no white space, no file names."""
    spec = make_spec(text=(FILE,))
    values = spec.to_json()
    values["text"] = [{"size": 10, "digest": "0" * 32}]
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    assert spec.fingerprint == hashlib.sha256(text.encode()).hexdigest()


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    code = "from neoscope.spec import RunSpec; print(RunSpec().fingerprint)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == RunSpec().fingerprint


def test_the_defaults_are_the_first_8192_tokens_of_fineweb() -> None:
    spec = make_spec()
    assert spec == RunSpec()
    assert (spec.model, spec.dataset, spec.dataset_config) == (
        GPT_NEO_125M,
        FINEWEB,
        FINEWEB_CONFIG,
    )
    assert spec.sequences * spec.positions * spec.batches * spec.partitions == 8192


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("gpt-neo-125m", "EleutherAI/gpt-neo-125m"),
        ("gpt-neo-125M", "EleutherAI/gpt-neo-125m"),
        ("EleutherAI/gpt-neo-125M", "EleutherAI/gpt-neo-125m"),
        ("gpt-neo-1.3B", "EleutherAI/gpt-neo-1.3B"),
        ("gpt-neo-2.7b", "EleutherAI/gpt-neo-2.7B"),
        ("someone/gpt-neo-125m", "someone/gpt-neo-125m"),
        ("gpt-neo", "gpt-neo"),
    ],
)
def test_published_models_go_by_their_short_names(given: str, expected: str) -> None:
    assert full_name(given) == expected
    assert make_spec(model=given).model == expected


def test_a_local_folder_wins_over_a_short_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt-neo-125m").mkdir()
    assert full_name("gpt-neo-125m") == "gpt-neo-125m"


def test_another_data_set_has_no_configuration_unless_one_is_given() -> None:
    assert make_spec(dataset="someone/text").dataset_config is None
    assert make_spec(dataset="someone/text", dataset_config="en").dataset_config == "en"
    assert make_spec(dataset=FINEWEB).dataset_config == FINEWEB_CONFIG


def test_local_text_and_the_sample_have_no_data_set_options() -> None:
    for spec in (make_spec(text=(FILE,)), make_spec(dataset="sample")):
        assert spec.dataset_config is spec.dataset_split is spec.dataset_revision is None
    assert make_spec(text=(FILE,)).dataset is None
    assert make_spec(dataset="sample").dataset == "sample"


def test_random_weights_have_a_seed_and_pretrained_ones_none() -> None:
    assert make_spec(weights="random").seed == 0
    assert make_spec(weights="random", seed=4).seed == 4
    assert make_spec().seed is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text": (FILE,), "dataset": "sample"}, "--text and --dataset do not fit"),
        ({"text": (FILE,), "dataset_config": "en"}, "--text and --dataset-config do not fit"),
        ({"text": (FILE,), "dataset_split": "test"}, "--text and --dataset-split do not fit"),
        ({"text": (FILE,), "dataset_revision": "v1"}, "--text and --dataset-revision do not fit"),
        ({"dataset": "sample", "dataset_split": "test"}, "--dataset sample and --dataset-split"),
        ({"seed": 3}, "--seed 3 goes with --weights random"),
        (
            {"weights": "random", "model": "gpt-neo-1.3B", "model_revision": "main"},
            "--model-revision has no meaning",
        ),
        ({"batches": 0}, "--batches is 0"),
        ({"sequences": 0}, "--sequences is 0"),
        ({"positions": -1}, "--positions is -1"),
        ({"partitions": 0}, "--partitions is 0"),
    ],
)
def test_what_does_not_fit_together_is_said(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_spec(**options)


def test_a_difference_names_the_field_and_both_values() -> None:
    lines = differing_fields(RunSpec(batches=3).identity(), RunSpec(separator="eos").identity())
    assert lines == ["batches was 1, now 3", 'separator was "eos", now "none"']


def test_canonical_json_has_one_form_and_no_nan() -> None:
    assert canonical_json({"b": 1, "a": ["é", None]}) == '{"a":["é",null],"b":1}'.encode()
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("0", (0,)),
        ("0,3,6-11", (0, 3, 6, 7, 8, 9, 10, 11)),
        ("3, 1-2 ,1", (1, 2, 3)),
        ("4-4", (4,)),
    ],
)
def test_layers_are_numbers_and_ranges(text: str, layers: tuple[int, ...]) -> None:
    assert make_spec(layers=text).layers == layers


@pytest.mark.parametrize("text", ["", ",", "a", "-1", "3-1", "1-", "0;1", "1.5", "²"])
def test_what_is_no_list_of_layers_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no number or range; write 0,3,6-11"):
        make_spec(layers=text)


def test_no_model_has_layers_without_end() -> None:
    with pytest.raises(UsageError, match="no model has more than 10000 layers"):
        make_spec(layers="0-99999999999")


def test_the_side_of_a_hook_is_its_output_unless_said() -> None:
    hook = "model.layers.*.mlp.gate_proj"
    assert make_spec(hook=hook) == make_spec(hook=hook, hook_side="output")
    assert make_spec(hook=hook) != make_spec(hook=hook, hook_side="input")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hook_side": "input"}, "--hook-side input goes with --hook only"),
        ({"hook": "model.layers.3.mlp"}, "has 0 stars: give exactly one"),
        ({"hook": "model.layers.*.experts.*.up"}, "has 2 stars: give exactly one"),
        ({"bos": True, "positions": 1}, "--bos takes the first of --positions 1"),
        ({"sequences_per_pass": 3}, "--sequences-per-pass 3 .* give one of 1, 2, 4, 8, 16"),
        ({"sequences_per_pass": 0}, "--sequences-per-pass 0 .* give one of"),
        ({"sequences_per_pass": 32}, "--sequences-per-pass 32 .* give one of"),
    ],
    ids=str,
)
def test_options_of_hook_and_pass_that_do_not_fit_are_refused(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        make_spec(**options)


# The command line and the environment


RUN_OPTIONS = [
    parameter
    for parameter in cli.commands["run"].params
    if isinstance(parameter, click.Option) and parameter.name != "help"
]


def parsed(command: str, *words: str) -> click.Context:
    """A command with its arguments, as the group would call it."""
    group = cli.make_context("neoscope", [command])
    return cli.commands[command].make_context(command, list(words), parent=group)


def variable(option: click.Option) -> str:
    """The variable that sets an option, as the help says it is called."""
    long = next(name for name in option.opts if name.startswith("--"))
    return "NEOSCOPE_" + long.removeprefix("--").replace("-", "_").upper()


def another_value(option: click.Option) -> str:
    """A value that the option takes and that is not its default."""
    if isinstance(option.type, click.Choice):
        return str(next(choice for choice in option.type.choices if choice != option.default))
    if isinstance(option.type, click.types.IntParamType):
        return "7"
    if option.is_flag:
        return "false" if option.secondary_opts else "true"
    return "cuda:7" if option.name == "device" else "something"


@pytest.mark.parametrize("option", RUN_OPTIONS, ids=lambda option: option.name)
def test_every_option_of_run_can_be_set_in_the_environment(
    option: click.Option, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = another_value(option)
    words = [option.opts[0], value]
    if option.is_flag:
        words = option.secondary_opts or option.opts
    given = parsed("run", "somewhere", *words).params
    assert given != parsed("run", "somewhere").params
    monkeypatch.setenv(variable(option), value)
    assert parsed("run", "somewhere").params == given
    assert unknown_variables() == []


@pytest.mark.parametrize("option", RUN_OPTIONS, ids=lambda option: option.name)
def test_an_option_on_the_command_line_wins_over_the_environment(
    option: click.Option, monkeypatch: pytest.MonkeyPatch
) -> None:
    if option.is_flag:
        return  # there is no word against it
    without = option.type.choices[-1] if isinstance(option.type, click.Choice) else "1"
    plain = str(option.default) if isinstance(option.default, (str, int)) else without
    monkeypatch.setenv(variable(option), another_value(option))
    found = parsed("run", "somewhere", option.opts[0], plain).params[str(option.name)]
    assert found in (option.default, 1, without, (Path("1"),))


def test_the_output_can_be_set_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEOSCOPE_OUTPUT", "s3://bucket/prefix")
    for name in ("run", "delete"):
        assert parsed(name).params["output"] == "s3://bucket/prefix"


def test_the_endpoint_of_aws_is_left_to_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an option it would win over AWS_ENDPOINT_URL_S3."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://theirs")
    assert parsed("run", "x").params["endpoint_url"] is None
    monkeypatch.setenv("NEOSCOPE_ENDPOINT_URL", "http://ours")
    assert parsed("run", "x").params["endpoint_url"] == "http://ours"


def test_every_field_of_the_spec_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """And has its default there, so that the help tells the truth."""
    params = parsed("run", "somewhere").params
    fields = {field.name for field in dataclasses.fields(RunSpec)} - {"text"}
    where = {"output", "text_paths", "partition", "workers", "device"}
    where |= {"endpoint_url", "connections", "sign_payload"}
    assert set(params) - where == fields
    given = {name: value for name, value in params.items() if name in fields}
    assert make_spec(**given) == RunSpec()


def test_variables_that_no_option_reads_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NEOSCOPE_BATCHS", "NEOSCOPE_", "NEOSCOPE_RUN_BATCHES", "NEOSCOPE_BATCHES"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OTHER_BATCHS", "1")
    assert unknown_variables() == ["NEOSCOPE_", "NEOSCOPE_BATCHS", "NEOSCOPE_RUN_BATCHES"]


def test_every_option_says_what_it_is_and_what_it_is_by_default() -> None:
    context = parsed("run", "somewhere")
    for option in RUN_OPTIONS:
        shown = option.get_help_record(context)
        assert shown is not None
        if not (option.is_flag or option.multiple or "url" in shown[0].lower()):
            assert "[default" in shown[1], option.name


def test_nothing_heavy_is_imported_for_the_help() -> None:
    code = (
        "import sys, neoscope.commands.main;"
        "print([m for m in ('torch', 'numpy', 'zarr', 'boto3', 'obstore') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_more_tokens_than_are_counted_are_refused_before_anything_is_done() -> None:
    with pytest.raises(UsageError, match="4,295,032,832 tokens has more than 4,294,967,295"):
        RunSpec(batches=524_296)
    RunSpec(batches=524_296, neurons=False)
