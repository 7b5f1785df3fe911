"""The arithmetic of a pass: pinned while it runs, put back after it, recorded, and not to be overridden."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import GPTNeoModel

from neoscope import capture, load_model
from neoscope.errors import UsageError
from neoscope.model import numerics
from neoscope.pipeline import provenance
from support.command import invoke

CPU, GPU = torch.device("cpu"), torch.device("cuda")
VARIABLES = numerics.ON_ANY_DEVICE | numerics.ON_A_GPU


def legacy() -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = (False, False)


def by_backend() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)


@pytest.fixture(scope="module")
def model(small_model: Path) -> GPTNeoModel:
    return load_model(str(small_model), device="cpu")


@pytest.fixture(params=[legacy, by_backend])
def loose(request: pytest.FixtureRequest) -> Iterator[dict[str, object]]:
    """torch's settings as somebody likes them who is in a hurry."""
    set_all: Callable[[], None] = request.param
    before = numerics.flags()
    set_all()
    yield numerics.flags()
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True
    numerics._set({name: before[name] for name in before if name != numerics.WORKSPACE})


def test_a_pass_is_ieee_float32_and_leaves_torch_as_it_was(
    loose: dict[str, object], model: GPTNeoModel
) -> None:
    seen = []
    split_k = torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction_split_k
    model.wte.register_forward_hook(lambda *_: seen.append(numerics.flags()))
    capture(model, [[1, 2, 3]])
    with pytest.raises(IndexError), numerics.pinned(CPU):
        raise IndexError
    assert numerics.flags() == loose
    (flags,) = seen
    assert flags["float32_matmul_precision"] == "highest"
    assert {value for name, value in flags.items() if name.endswith("fp32_precision")} == {"ieee"}
    assert not any(value for name, value in flags.items() if ".allow_" in name)
    torch_has = torch.backends.cuda.matmul
    assert torch_has.allow_bf16_reduced_precision_reduction
    assert torch_has.allow_fp16_reduced_precision_reduction_split_k is split_k


def test_a_run_records_the_settings_of_its_passes(
    loose: dict[str, object], small_run: list[str], tmp_path: Path
) -> None:
    assert invoke("run", tmp_path / "run", *small_run).code == 0
    (told,) = json.loads((tmp_path / "run" / "manifest.json").read_bytes())["environment"]
    assert told["precision"]["mkldnn.matmul.fp32_precision"] == "ieee"
    assert "gpu" not in told


@pytest.mark.parametrize("name", VARIABLES)
def test_what_the_environment_overrides_is_refused_by_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(UsageError, match=f"^{name}=1 is set in the environment .*: unset it$"):
        numerics.check_environment(GPU)
    if name in numerics.ON_A_GPU:
        numerics.check_environment(CPU)
    for harmless in ("", VARIABLES[name].upper()):
        monkeypatch.setenv(name, harmless)
        numerics.check_environment(GPU)


def test_an_override_ends_a_run_before_anything_is_stored(
    small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: GPTNeoModel
) -> None:
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    done = invoke("run", tmp_path / "run", *small_run)
    assert (done.code, done.err.splitlines()[-1]) == (
        2,
        "neoscope: error: ONEDNN_DEFAULT_FPMATH_MODE=BF16 is set in the environment and changes what "
        "is computed: unset it",
    )
    assert not list((tmp_path / "run").rglob("*.*"))
    with pytest.raises(UsageError, match="ONEDNN_DEFAULT_FPMATH_MODE=BF16"):
        capture(model, [[1]])


def test_cublas_has_a_fixed_workspace_before_cuda_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(numerics.WORKSPACE, "")
    numerics.fix_workspace(CPU)
    assert not numerics.flags()[numerics.WORKSPACE]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(UsageError, match="CUDA has started .* set it to :4096:8 before"):
        numerics.fix_workspace(GPU)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    numerics.fix_workspace(GPU)
    numerics.check_environment(GPU)
    assert numerics.flags()[numerics.WORKSPACE] == ":4096:8"


def test_torch_override_of_nvidias_images_is_undone_by_a_pass() -> None:
    """What `TORCH_ALLOW_TF32_CUBLAS_OVERRIDE` sets is a setting like others, once it is unset for us."""
    code = (
        "import torch; from neoscope.model import numerics; print(numerics.flags())\n"
        "with numerics.pinned(torch.device('cpu')): print(numerics.flags())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    before, within = done.stdout.splitlines()
    assert "'cuda.matmul.fp32_precision': 'tf32'" in before
    assert "'cuda.matmul.fp32_precision': 'ieee'" in within


def test_the_record_says_which_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(major=9, minor=0, multi_processor_count=132, total_memory=1 << 36)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    monkeypatch.setattr(provenance, "_driver", lambda: "580.65.06")
    told = provenance.describe_environment(GPU)
    assert told["device"] == "NVIDIA H100"
    assert told["gpu"] == {
        "driver": "580.65.06",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "compute_capability": "9.0",
        "multiprocessors": 132,
        "memory": 1 << 36,
    }
    assert "gpu" not in provenance.describe_environment(CPU)
