"""What a GPU does, with Triton's own interpreter in its place, and its machine code, which takes none."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from neoscope.statistics import gpu


def module(name: str) -> Any:
    pytest.importorskip("triton", reason="it comes with torch on Linux")
    return importlib.import_module(f"neoscope.statistics.{name}")


@functools.cache
def interpreted(name: str) -> Any:
    """The kernels of a module for a GPU, run by Triton's interpreter."""
    from triton.runtime.jit import JITFunction

    found = vars(module(name)).items()
    kernels = {each: kernel for each, kernel in found if isinstance(kernel, JITFunction)}
    return SimpleNamespace(**{each: _interpreted(kernel) for each, kernel in kernels.items()})


def _interpreted(kernel: Any) -> Any:
    """A kernel, and with it what it calls of Triton's language that is compiled as it is itself."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction, _patch_lang

    def called(function: Any) -> Callable[..., Any]:
        def call(*values: Any, **named: Any) -> Any:
            scope = _patch_lang(function.fn)  # which a call of InterpretedFunction never takes back
            try:
                return InterpretedFunction(function.fn).rewrite()(*values, **named)
            finally:
                scope.restore()

        return call

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*values: Any, **named: Any) -> None:
                with pytest.MonkeyPatch.context() as patch:
                    for each in ("max", "min", "sum"):
                        patch.setattr(tl, each, called(getattr(tl, each)))
                    InterpretedFunction(kernel.fn)[grid](*values, **named)

            return launch

    return Kernel()


@contextlib.contextmanager
def as_on_a_gpu(kernels: Callable[[str], Any] = interpreted) -> Iterator[None]:
    """Statistics that are made here add as on a GPU, with these kernels by the name of their module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "is_gpu", lambda _device: True)
        patch.setattr(gpu, "kernels", kernels)
        yield


class Recorded:
    """A kernel that keeps the names and values of its last launch's options."""

    options: dict[str, Any]

    def __getitem__(self, _grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *_values, **named: setattr(self, "options", named)


LAUNCH = ("num_warps", "enable_fp_fusion")


def machine_code(
    kernel: Any, types: dict[str, str], options: dict[str, Any], capability: int
) -> dict[str, Any]:
    """What Triton makes of a kernel for a GPU, by stage, launched with these types of its arguments and
    these options, memory and neurons in multiples of 16 as those of most models are."""
    import triton

    launch = {name: options[name] for name in LAUNCH if name in options}
    constants = {name: value for name, value in options.items() if name not in LAUNCH}
    sixteens = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if types.get(name, "").startswith("*") or name == "neurons"
    }
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature=types | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        attrs=sixteens,
    )
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    made: dict[str, Any] = triton.compile(source, target=target, options=launch).asm
    return made
