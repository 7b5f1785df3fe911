"""`neoscope plan`: what it says is what a run then leaves and takes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import transformers

from faults.proxy import Request, proxied
from neoscope.commands.model_shape import _built as model_shape_of_transformers
from neoscope.commands.model_shape import model_shape
from neoscope.commands.plan import plan
from neoscope.commands.price import Rates, lines, seconds
from neoscope.spec import GPT_NEO_MODELS, RunSpec, make_spec
from support.command import invoke, neoscope
from support.places import body, listing

SHAPES = [
    {},
    {"batches": 3},
    {"partitions": 2, "batches": 2},
    {"store_dtype": "float16"},
    {"compression": "lz4"},
    {"sequences": 1, "positions": 1},
    {"arrays": False, "batches": 67},
    {"arrays": False, "batches": 3, "partitions": 2, "token_sums": True},
    {"statistics": False},
    {"neurons": False},
    {"layers": "1", "sequences_per_pass": 2},
    {"sequences": 12, "positions": 64},
]


def spec_of(model: Path, **options: object) -> RunSpec:
    chosen = {"sequences": 8, "positions": 24, **options}
    return make_spec(model=str(model), dataset="sample", **chosen)


def run(url: str, spec: RunSpec, *more: str, text: Path | None = None) -> None:
    """Make every partition of a run."""
    shape = ("model", "partitions", "batches", "sequences", "positions")
    names = (*shape, "store_dtype", "compression")
    words = [w for name in names for w in (f"--{name.replace('_', '-')}", getattr(spec, name))]
    words += [
        f"--no-{name}" for name in ("arrays", "statistics", "neurons") if not getattr(spec, name)
    ]
    words += ["--token-sums"] if spec.token_sums else []
    words += ["--layers", ",".join(map(str, spec.layers))] if spec.layers else []
    words += ["--sequences-per-pass", spec.pass_sequences]
    files = [word for file in sorted(text.iterdir()) for word in ("--text", file)] if text else []
    for partition in range(spec.partitions):
        source = files or ["--dataset", "sample"]
        done = invoke("run", url, *words, *source, *more, "--partition", partition)
        assert done.code == 0, done.err


@pytest.fixture
def two_files(tmp_path: Path) -> Path:
    """The sample twice, so that two partitions have a share each."""
    from neoscope.text.documents import SAMPLE_FILE

    folder = tmp_path / "text"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_bytes(SAMPLE_FILE.read_bytes())
    return folder


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_bytes_and_objects_are_those_that_the_run_leaves(
    tmp_path: Path, small_model: Path, two_files: Path, options: dict[str, object]
) -> None:
    spec = spec_of(small_model, **options)
    found = plan(spec)
    url = str(tmp_path / "run")
    run(url, spec, text=two_files if spec.partitions > 1 else None)
    left = listing(url)
    assert found.objects == len(left)
    assert {part.what: part.objects for part in found.parts} == Counter(map(what, left))
    stored = sum(
        size for key, (size, *_) in left.items() if "activations.zarr/" in key and "/c/" in key
    )
    assert stored == found.size if spec.compression == "none" else stored != found.size
    manifest = json.loads(body(url, "manifest.json"))
    assert found.shape.layers == manifest["hook"]["layers"]
    assert found.shape.neurons == manifest["model"]["neurons"]


def what(key: str) -> str:
    """The part of the plan that an object belongs to."""
    folder, _, rest = key.partition("/")
    named = {
        "statistics.zarr": "statistics.zarr",
        "statistics": "statistics of each partition",
        "neurons.zarr": "neurons.zarr",
        "neurons": "neurons of each partition",
        "token-sums": "sums by token" if "MLP" in rest else "sums by token of each partition",
        "records": "records",
        "rollups": "roll-ups of the records",
    }
    if folder != "activations.zarr":
        return named.get(folder, "claim, vocabulary, manifest")
    if rest.endswith("zarr.json"):
        return "Zarr metadata"
    return "layers" if rest.startswith("MLP_") else "token ids and lengths"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"partitions": 2, "batches": 2},
        {"arrays": False, "batches": 67},
        {"arrays": False, "batches": 67, "partitions": 2, "token_sums": True},
        {"statistics": False, "neurons": False},
    ],
    ids=str,
)
def test_requests_are_those_that_the_store_gets(
    endpoint: str, s3_url: str, small_model: Path, two_files: Path, options: dict[str, object]
) -> None:
    spec = spec_of(small_model, **options)
    with proxied(endpoint) as proxy:
        text = two_files if spec.partitions > 1 else None
        run(s3_url, spec, "--endpoint-url", proxy.endpoint, text=text)
        seen = Counter(map(kind, proxy.requests))
    found = plan(spec).requests
    assert (seen["put"], seen["get"]) == (found.puts, found.gets)
    assert (seen["list"], seen["delete"]) == (found.lists, found.deletes)


def kind(request: Request) -> str:
    if "list-type" in request.query:
        return "list"
    return {"PUT": "put", "GET": "get", "HEAD": "get", "POST": "delete", "DELETE": "delete"}[
        request.method
    ]


def test_the_published_models_are_planned_without_the_hub() -> None:
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    done = neoscope("plan", "--model", "gpt-neo-1.3B", **unreachable)
    assert done.code == 0, done.err
    assert "24 layers of 8,192 neurons" in done.out
    assert f"{24 * 64:,} objects" in done.out
    assert f"{24 * 16 * 512 * 8192 * 4 + 24 * 64 * 4:,} bytes" in done.out


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", GPT_NEO_MODELS)
@pytest.mark.parametrize("layers", [None, "0,3-5"])
def test_the_published_shapes_are_reckoned_as_transformers_builds_them(
    name: str, precision: str, layers: str | None
) -> None:
    chosen = make_spec(model=name, precision=precision, layers=layers)
    outer = make_spec(model=name, hook="transformer.h.*.mlp.c_proj", hook_side="input")
    assert model_shape(chosen) == model_shape_of_transformers(chosen)
    assert model_shape(outer) == model_shape_of_transformers(outer)


def test_weights_and_operations_are_those_of_gpt_neo_125m() -> None:
    found = plan(RunSpec())
    parameters = found.shape.weight_bytes / 4
    assert parameters == pytest.approx(125.2e6 + 12 * 2048 * 2048 / 4, rel=0.01)  # and masks
    matrices = 12 * (4 * 768**2 + 2 * 768 * 3072) - 768 * 3072
    assert found.flops == pytest.approx(2 * 8192 * (matrices + 12 * 2 * 768 * 512))


def test_rates_give_time_and_price() -> None:
    found = plan(RunSpec(partitions=2, batches=10))
    slow = Rates(tflops=0.1, mb_per_second=1000, per_hour=3.6, per_gb_month=0.02, per_1000_puts=5)
    computing = found.flops / 0.1e12
    assert seconds(found, slow) == pytest.approx(10 * computing)
    stored = Rates(tflops=1000, mb_per_second=100)
    assert seconds(found, stored) == pytest.approx(10 * found.sent / 20 / 100e6)
    text = "\n".join(lines(found, slow))
    assert f"{10 * computing:,.1f} s of 2 workers" in text
    assert f"machines {3.6 * 2 * 10 * computing / 3600:,.4f}" in text
    assert f"a month of storage {0.02 * found.stored / 1e9:,.4f}" in text
    puts = found.requests.puts + found.requests.lists
    assert f"PUT and LIST {5 * puts / 1000:,.4f}" in text
    assert "GET and HEAD 0" not in text


def test_without_rates_it_says_what_it_takes_to_know_the_time() -> None:
    assert "give --tflops and --mb-per-second" in "\n".join(lines(plan(RunSpec()), Rates()))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak there")
def test_memory_is_about_what_the_process_takes(tmp_path: Path, small_model: Path) -> None:
    """The process alone: that of weights and layers is seen by the benchmark of memory."""
    script = (
        "import sys; from neoscope.commands.main import invoke; code = invoke(sys.argv[1:]);"
        "print(open('/proc/self/status').read()); sys.exit(code)"
    )
    words = ["run", str(tmp_path / "run"), "--model", str(small_model), "--dataset", "sample"]
    sizes = ["--sequences", "8", "--positions", "24"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words, *sizes], capture_output=True, text=True, check=True
    )
    peak = 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", done.stdout)[0])
    assert plan(spec_of(small_model)).host_memory == pytest.approx(peak, rel=0.35)


@pytest.mark.parametrize("kind", ["LlamaConfig", "GPT2Config", "GPTNeoXConfig"])
def test_other_decoders_are_planned_by_their_configuration(tmp_path: Path, kind: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 99}
    if kind != "GPT2Config":
        sizes["intermediate_size"] = 128
    getattr(transformers, kind)(**sizes).save_pretrained(tmp_path)
    found = plan(make_spec(model=str(tmp_path), dataset="sample", layers="0,2"))
    assert (found.shape.layers, found.shape.neurons, found.shape.hidden) == ([0, 2], 128, 32)


def test_a_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    done = invoke("plan", "--model", tmp_path / "none")
    assert done.code == 3
    assert re.search(r"neoscope: error: .*none", done.err)


def test_what_does_not_fit_together_is_refused_as_by_run() -> None:
    assert invoke("plan", "--seed", "1").code == 2
    assert invoke("plan", "--tflops", "0").code == 2


@pytest.mark.parametrize(
    ("words", "lacks"),
    [
        (("--per-hour", "3"), "--tflops and --mb-per-second"),
        (("--tflops", "20"), "--mb-per-second"),
        (("--mb-per-second", "500"), "--tflops"),
        (("--per-hour", "3", "--tflops", "20"), "--mb-per-second"),
    ],
    ids=str,
)
def test_a_rate_that_says_nothing_alone_is_refused(words: tuple[str, ...], lacks: str) -> None:
    done = invoke("plan", *words)
    assert done.code == 2 and f"without {lacks}:" in done.err and words[0] in done.err


def test_nothing_is_written(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("plan", "--model", small_model, "--dataset", "sample").code == 0
    assert os.listdir(tmp_path) == []
