"""The C++ code of this package, compiled when it is first used."""

import ctypes
import math
from functools import cache
from pathlib import Path

import torch

from minigpt.errors import MiniGPTError

CPUS = Path("/sys/devices/system/cpu")  # of Linux
SOURCES = ("decoding.cpp", "sampling.cpp")
# Allow reordered sums, fused products and vectorised loops, which torch.compile's own flags forbid.
FLAGS = ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno", "-ffp-contract=fast")
FLAGS_OF_GCC = ("-ftree-loop-vectorize",)


@cache
def library() -> ctypes.CDLL:
    """Compile and load the C++ files with the compiler and the cache of torch.compile.

    Raises:
        MiniGPTError: The code cannot be compiled, for example without a C++ compiler.
    """
    try:
        from torch._inductor.codecache import CppCodeCache  # takes seconds to import
        from torch._inductor.cpp_builder import is_gcc

        source = "\n".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in SOURCES)
        return CppCodeCache.load(source, extra_flags=FLAGS + (FLAGS_OF_GCC if is_gcc() else ()))
    except Exception as error:  # each stage of the compiler has its own exceptions
        raise MiniGPTError(
            "The model cannot be compiled here, perhaps because there is no C++ compiler. It stays as it is."
        ) from error


def last_caches(threads: int) -> float:
    """Return the bytes of the last caches that so many threads can use, or infinity if the system does not tell."""
    sizes = {}
    try:
        for folder in CPUS.glob("cpu[0-9]*/cache/index3"):
            kilobytes = (folder / "size").read_text(encoding="ascii").strip().removesuffix("K")
            sizes[(folder / "shared_cpu_list").read_text(encoding="ascii")] = int(kilobytes) * 1024
    except (OSError, ValueError):
        return math.inf
    return sum(sorted(sizes.values())[-threads:]) or math.inf


def address(tensor: torch.Tensor | None) -> ctypes.c_void_p | None:
    """Return the address of a tensor's first element, for C++; None for None."""
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())
