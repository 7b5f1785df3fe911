"""The arithmetic of a pass, pinned: float32 is IEEE float32, and reduced precisions add up in float32.

In: the device. Out: torch's settings as they must be while a pass runs, put back after it; the same for
the record; an error for what the environment overrides beyond torch's reach. It does not know the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from neoscope.errors import UsageError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# What each variable may say, beside nothing: all else has libraries compute in another precision, or
# choose their kernels in another way, whatever torch is told.
ON_ANY_DEVICE = {
    "ONEDNN_DEFAULT_FPMATH_MODE": "strict",
    "DNNL_DEFAULT_FPMATH_MODE": "strict",
}
ON_A_GPU = {
    "NVIDIA_TF32_OVERRIDE": "0",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "0",
    "CUBLAS_EMULATE_SINGLE_PRECISION": "0",
    "PYTORCH_TUNABLEOP_ENABLED": "0",
    "CUBLASLT_WORKSPACE_SIZE": "",
    WORKSPACE: ":4096:8",
}


def check_environment(device: torch.device) -> None:
    """Raise UsageError where a variable of the environment changes the arithmetic of a pass there."""
    allowed = ON_ANY_DEVICE | (ON_A_GPU if device.type == "cuda" else {})
    for name, value in allowed.items():
        found = os.environ.get(name, "")
        if found and found.lower() != value:
            raise UsageError(
                f"{name}={found} is set in the environment and changes what is computed: unset it"
            )


def fix_workspace(device: torch.device) -> None:
    """Give cuBLAS the workspace with which equal GPUs compute equal bits.

    It is read once, when CUDA starts. Raises UsageError where that is past.
    """
    if device.type != "cuda" or os.environ.get(WORKSPACE):
        return
    if torch.cuda.is_initialized():
        raise UsageError(
            f"CUDA has started in this process without {WORKSPACE}: set it to {ON_A_GPU[WORKSPACE]} "
            "before anything uses the GPU"
        )
    os.environ[WORKSPACE] = ON_A_GPU[WORKSPACE]


@contextmanager
def pinned(device: torch.device) -> Iterator[None]:
    """Compute as `flags` says, and leave torch's settings as they were.

    They belong to the whole process: threads that compute something else meanwhile share them. Raises
    UsageError as `check_environment`.
    """
    check_environment(device)
    before = _get()
    _set(_PINNED)
    try:
        yield
    finally:
        _set(before)


def flags() -> dict[str, Any]:
    """torch's settings of precision, as they are now."""
    return {**_get(), WORKSPACE: os.environ.get(WORKSPACE)}


# The legacy setting first: it sets some of the others, and torch refuses to compute where they differ.
_PINNED: dict[str, Any] = {
    "float32_matmul_precision": "highest",
    "cuda.matmul.fp32_precision": "ieee",
    "cudnn.conv.fp32_precision": "ieee",
    "cudnn.rnn.fp32_precision": "ieee",
    "mkldnn.matmul.fp32_precision": "ieee",
    "mkldnn.conv.fp32_precision": "ieee",
    "mkldnn.rnn.fp32_precision": "ieee",
    "cuda.matmul.allow_fp16_accumulation": False,
    "cuda.matmul.allow_fp16_reduced_precision_reduction": False,
    "cuda.matmul.allow_bf16_reduced_precision_reduction": False,
    "cuda.allow_fp16_bf16_reduction_math_sdp": False,
}


def _get() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _PINNED:
        if name == "float32_matmul_precision":
            try:
                found[name] = torch.get_float32_matmul_precision()
            except RuntimeError:  # set in both ways, differently: the others say all
                continue
        elif name == "cuda.allow_fp16_bf16_reduction_math_sdp":
            found[name] = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
        else:
            place, attribute = _place(name)
            found[name] = getattr(place, attribute)
    return found


def _set(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if name == "float32_matmul_precision":
            torch.set_float32_matmul_precision(value)
        elif name == "cuda.allow_fp16_bf16_reduction_math_sdp":
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(value)
        else:
            place, attribute = _place(name)
            # Whether a product may be split along its sums is left as it is.
            split = getattr(place, f"{attribute}_split_k", None)
            setattr(place, attribute, value if split is None else (value, split))


def _place(name: str) -> tuple[Any, str]:
    """The object below torch.backends that has a setting, and the setting's name there."""
    *path, attribute = name.split(".")
    place: Any = torch.backends
    for each in path:
        place = getattr(place, each)
    return place, attribute
