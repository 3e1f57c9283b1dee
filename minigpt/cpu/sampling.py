"""The filter of logits in C++, for compiled generation: one call instead of some twenty operations on a few numbers."""

import ctypes
from functools import cache

import torch

from minigpt.cpu.compiler import address, library
from minigpt.generation.sampling import GREEDY_BELOW, SamplingParams


class CompiledParams(SamplingParams):
    """`SamplingParams` with a compiled filter, for logits on a CPU."""

    def filter(self, logits: torch.Tensor, generated: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the repetition penalty, temperature, top-k, top-p and min-p, as `SamplingParams.filter` does.

        Raises:
            IndexError: An id of `generated` is outside the vocabulary.
        """
        if self.temperature < GREEDY_BELOW or logits.device.type != "cpu":
            return super().filter(logits, generated)
        filtered = logits.to(torch.float32, copy=True).contiguous()
        ids, penalty = None, 1.0
        if generated is not None and self.repetition_penalty is not None:
            ids, penalty = generated.to(torch.int64).expand(len(logits), -1).contiguous(), self.repetition_penalty
        outside = library().filter_logits(
            address(filtered), *map(ctypes.c_int64, filtered.shape),
            address(ids), ctypes.c_int64(0 if ids is None else ids.shape[1]),
            ctypes.c_float(penalty), ctypes.c_float(self.temperature),
            ctypes.c_int64(int(self.top_k or 0)), ctypes.c_float(1 if self.top_p is None else self.top_p),
            ctypes.c_float(self.min_p or 0),
        )  # fmt: skip
        if outside:
            raise IndexError("an id is outside the vocabulary")
        return filtered


@cache
def fastest_params(vocab_size: int) -> type[SamplingParams]:
    """Return `CompiledParams`, or `SamplingParams` if the two differ on random logits of this size."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, vocab_size, generator=generator).mul(2).round(decimals=1)  # with ties
    ids = torch.randint(vocab_size, (3, 5), generator=generator)
    for settings in ((0.8, 30, 0.9, 0.02, 1.1), (1.3, 3, None, None, None), (0.5, None, 0.5, 0.1, 1.5)):
        plain = SamplingParams(*settings).filter(logits, ids)
        if not torch.equal(plain, CompiledParams(*settings).filter(logits, ids)):
            return SamplingParams
    return CompiledParams
