# SPDX-License-Identifier: Apache-2.0
"""`hf-sam env`: versions and what is found on this machine, for a bug report."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata

from . import __version__, launch

LIBRARIES = (
    *("torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy", "datasets"),
    *("evaluate", "peft", "trl", "sentence-transformers", "deepspeed", "bitsandbytes", "torchao"),
)
VARIABLES = ("ACCELERATE_", "CUBLAS_", "CUDA_", "HF_HUB_OFFLINE", "NCCL_", "OMP_", "PYTORCH_")


def report() -> str:
    """Return the report as a Markdown list, to be pasted."""
    return "\n".join(f"- {name}: {value}" for name, value in found())


def found() -> Iterator[tuple[str, str]]:
    """Yield what was found, by name."""
    yield "hf-sam", f"{__version__} ({'installed' if launch.INSIDE.is_dir() else 'a checkout'})"
    yield "python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "platform", platform.platform()
    for name in LIBRARIES:
        yield name, _version(name)
    yield from _hardware()
    for name, value in sorted(os.environ.items()):
        if name.startswith(VARIABLES):
            yield name, value


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _hardware() -> Iterator[tuple[str, str]]:
    import psutil
    import torch

    memory = psutil.virtual_memory().total / 2**30
    threads = torch.get_num_threads()
    yield "processor", f"{os.cpu_count()} cores, {memory:.0f} GiB, torch uses {threads}"
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    yield "accelerator", _devices(accelerator.type) if accelerator is not None else "none"
    kinds = [kind for kind in ("gloo", "mpi", "nccl", "xccl") if _has_backend(kind)]
    yield "backends of torch.distributed", ", ".join(kinds) or "none"


def _devices(kind: str) -> str:
    import torch

    count = torch.accelerator.device_count()
    if kind == "cuda":
        names = sorted({torch.cuda.get_device_name(index) for index in range(count)})
        return f"{count} x {', '.join(names)}, CUDA {torch.version.cuda}"
    return f"{count} x {kind}"


def _has_backend(kind: str) -> bool:
    from torch import distributed

    return distributed.is_available() and distributed.is_backend_available(kind)
