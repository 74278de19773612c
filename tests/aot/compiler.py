"""Compiles what the launcher launches, for a GPU that need not be there."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver

from rest_kernels.triton_backend import launch
from tests.aot.sass import Disassembly, Resources

KERNELS = ("softmax_stats_kernel", "merge_kernel", "ppo_rows_kernel", "logits_gradient_kernel")


class AbsentDevice:
    """What Triton asks its driver before a launch. `architecture` 90 is sm_90; Triton keeps kernels by device."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        """With warps of 32 threads."""
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        """One device for each architecture."""
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        """The default stream."""
        return 0


class CompileOnly:
    """Stands in for a kernel: compiles it for the arguments of each launch, exactly as the launch would."""

    def __init__(self, kernel, compiled: list[CompiledKernel]) -> None:
        self.kernel, self.compiled = kernel, compiled

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.compiled.append(self.kernel.warmup(*args, grid=grid, **kwargs))


class Compiler:
    """Compiles and disassembles kernels; files go to `directory`, which should be new."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def compile(self, architecture: int, pass_over_logits: Callable[[], object]) -> CompiledKernel:
        """The one kernel that `pass_over_logits` launches, on tensors of the CPU."""
        compiled: list[CompiledKernel] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_CACHE_DIR", str(self.directory))
            for name in KERNELS:
                patch.setattr(launch, name, CompileOnly(getattr(launch, name), compiled))
            driver.set_active(AbsentDevice(architecture))
            try:
                pass_over_logits()
            finally:
                # Triton looks for a real one when it next needs it.
                driver.set_active(None)
        [kernel] = compiled
        return kernel

    def resources(self, kernel: CompiledKernel) -> Resources:
        """Of a compiled kernel."""
        return Resources.parse(self._cuobjdump("-res-usage", kernel))

    def disassembly(self, kernel: CompiledKernel) -> Disassembly:
        """Of a compiled kernel."""
        return Disassembly.parse(self._cuobjdump("-sass", kernel))

    def _cuobjdump(self, option: str, kernel: CompiledKernel) -> str:
        cubin = self.directory / f"{kernel.hash}.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, option, str(cubin)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
