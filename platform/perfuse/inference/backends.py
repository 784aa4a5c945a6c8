"""How a network is computed: eagerly or compiled, and in which numbers. Backends differ in the last bits of a logit."""

import os
import shutil
from typing import Literal, get_args

from perfuse.contract import Numbers
from perfuse.models import resolve_precision

Backend = Literal["eager-fp32", "eager-bf16", "eager-fp16", "compiled-fp32", "compiled-bf16", "compiled-fp16"]


def _named(name: str) -> Backend:
    return next(backend for backend in get_args(Backend) if backend == name)


def usual(asked: Numbers, device: str) -> Backend:
    """What a network runs on where measuring would take longer than the work."""
    return _named(f"eager-{resolve_precision(asked, device)}")


def eager_backends(asked: Numbers, device: str) -> list[Backend]:
    """What can be measured on a device without compiling; auto: float32, and the half precision that is native there."""
    first = usual(asked, device)
    if asked != "auto":
        return [first]
    half: Backend = "eager-fp16" if device != "cpu" and first == "eager-fp32" else first
    return list(dict.fromkeys(("eager-fp32", half)))


def compiled(eager: Backend) -> Backend:
    """The backend that compiles what an eager one runs."""
    return _named(eager.replace("eager", "compiled"))


def why_not_compiled(device: str) -> str | None:
    """What this machine lacks to compile networks; None where it can be tried."""
    named = os.environ.get("CXX", "").split()[:1]
    if not any(map(shutil.which, [*named, "g++", "clang++"])):
        return "there is no C++ compiler; install g++ or clang++, or name one in CXX"
    if device != "cpu":
        from torch.utils._triton import has_triton

        return None if has_triton() else "there is no Triton for this GPU; install triton"
    return None
