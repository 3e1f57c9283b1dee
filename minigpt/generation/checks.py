"""Checks that the faster paths of generation give the logits of a model's plain forward.

The plain path is `model(window)`: the last `block_size` ids, computed again for each new id. Every faster path makes an
assumption about the model, which a change of the model, in its file or from outside, may break. So a path is used only
after it has reproduced the plain logits of this very model. Otherwise generation takes the plain path, and a note says
once which path is not used and why.

The comparison runs on a copy in float32, since the rounding of bfloat16 or of an 8-bit kernel would hide a small
difference. In the copy, parameters that are all zero get small random numbers, since a branch that starts at zero would
not show a difference. The ids are random and as many as will be generated, because a difference may begin at any
position.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from minigpt.errors import note
from minigpt.models import HasCache, HasContext, device_of, has_cache, has_context
from minigpt.models.stock import hooked

TOLERANCE = 1e-4  # share of the logits' range; in float32 a cache differs by 1e-6, a 0.1 % running mean by 1e-3
ROUNDED = 0.05  # tolerance for code that rounds to bfloat16 or 8 bits, compared with PyTorch on the same weights
ONE_BY_ONE = 4  # the number of last ids that are computed one at a time
LONGEST = 1024  # the number of ids compared for a model without block_size
NOISE = 0.05  # the standard deviation of the numbers that replace parameters that are all zero
PATH_NAMES = {"context": "table of transitions", "cache": "key-value cache", "compiled": "compiled step"}

Network = TypeVar("Network", bound=nn.Module)


class Verdict(NamedTuple):
    """The result of a check: the state of the model, the length compared, and why paths are refused."""

    state: tuple
    length: int
    refused: dict[str, str]  # path to reason


class CompiledStep(Protocol):
    """Compiled code that computes a network's `forward(idx, cache)` for one id per row."""

    def __call__(self, idx: torch.Tensor, cache: Any) -> torch.Tensor: ...


_verdicts: "WeakKeyDictionary[nn.Module, Verdict]" = WeakKeyDictionary()
_compiled: "WeakKeyDictionary[nn.Module, tuple[tuple, CompiledStep]]" = WeakKeyDictionary()  # the state it is for
_noted: "WeakKeyDictionary[nn.Module, set[str]]" = WeakKeyDictionary()


def usable_paths(model: nn.Module, length: int) -> set[str]:
    """Return the faster paths that give the logits of this model's plain forward.

    - `context`: the model has a `context_size`, and windows of that many ids give the logits of longer windows.
    - `cache`: the model has `new_cache(batch_size)`; see `minigpt.models.HasCache`.
    - `compiled`: the model has a compiled step for its current weights; see `cpu.decoding.compile_decoding`.

    A model is checked once, and again when its weights, modules or hooks have changed.

    Args:
        model: `(B, T)` ids to `(B, T, V)` logits, in eval mode.
        length: The final number of ids in the longest row; longer windows are not compared.
    """
    claims = {path for path, has in (("context", has_context), ("cache", has_cache)) if has(model)}
    if not claims:
        return set()
    state, length = state_of(model), min(length, block_size_of(model, LONGEST))
    if model in _compiled and _compiled[model][0] != state:
        del _compiled[model]
        _note_once(model, "compiled", "the model has changed since it was compiled")
    known = _verdicts.get(model)
    if known is None or known.state != state or known.length < length:
        refused = _check(model, claims, length)
        _verdicts[model] = Verdict(state, length, refused)
        for path, reason in refused.items():
            _note_once(model, path, reason)
    usable = claims - _verdicts[model].refused.keys()
    return usable | {"compiled"} if "cache" in usable and model in _compiled else usable


def use_compiled_step(model: nn.Module, step: CompiledStep) -> None:
    """Use compiled code in generation until the model changes."""
    _compiled[model] = state_of(model), step


def compiled_step(model: nn.Module) -> CompiledStep | None:
    """Return the compiled code of a model, or None."""
    return _compiled[model][1] if model in _compiled else None


def block_size_of(model: nn.Module, default: int) -> int:
    """Return the longest window that a model takes: its `block_size`, or `default` if it has none."""
    return getattr(model, "block_size", None) or default


def window_size(model: nn.Module, paths: set[str], default: int) -> int:
    """Return the number of last ids that generation passes to a model, given its usable paths."""
    return model.context_size if "context" in paths and has_context(model) else block_size_of(model, default)


def state_of(model: nn.Module) -> tuple:
    """Return a value that changes when the modules, hooks, parameters or buffers of a model do."""
    modules = tuple((id(m), type(m), _hooks(m), _code(m), _settings(m)) for m in model.modules())
    tensors = list(chain(model.parameters(), model.buffers()))
    versions = tuple((t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype) for t in tensors)
    # `_version` does not count changes through `tensor.data`, but the sums show them.
    sums = torch.stack([_sum_of_bits(t.detach()) for t in tensors]).tolist() if tensors else []
    return modules, versions, tuple(sums)


def _sum_of_bits(tensor: torch.Tensor) -> torch.Tensor:
    """Add up a tensor's memory as 64-bit integers, which gives the same sum with any number of threads."""
    by_columns = tensor.dim() == 2 and tensor.mT.is_contiguous()  # see `cpu.layers.order_weights`
    data = (tensor.mT if by_columns else tensor.contiguous()).flatten().view(torch.uint8)
    whole = data.numel() // 8 * 8
    words = data[:whole] if data.storage_offset() % 8 == 0 else data[:whole].clone()
    return words.view(torch.int64).sum() + data[whole:].sum()


def _hooks(module: nn.Module) -> tuple[int, ...]:
    return (*module._forward_hooks, *module._forward_pre_hooks)


def _code(module: nn.Module) -> int:
    return id(getattr(module.forward, "__func__", module.forward))


def _settings(module: nn.Module) -> tuple:
    plain = ((key, value) for key, value in vars(module).items() if isinstance(value, (bool, int, float, str)))
    return tuple((key, str(value)) for key, value in plain if key != "training")


def _note_once(model: nn.Module, path: str, reason: str) -> None:
    if path not in (noted := _noted.setdefault(model, set())):
        noted.add(path)
        note(
            f"Text is generated without the {PATH_NAMES[path]} of this {type(model).__name__}, "
            f"by its plain forward: {reason}."
        )


@torch.no_grad()
def _check(model: nn.Module, claims: set[str], length: int) -> dict[str, str]:
    if name := hooked(model):  # a hook may depend on the window, and must not see the ids of a check
        return dict.fromkeys(claims, f"{name} has a forward hook")
    with in_float32(model):
        try:
            exact = exact_copy(model)
            ids = random_ids(exact, length)
            plain = exact(ids)
        except Exception as error:  # a model can raise anything
            return dict.fromkeys(claims, f"it cannot be checked ({one_line(error)})")
        if plain.isnan().any():
            return {}  # `draw` will raise an error
        checks: dict[str, Callable[..., str | None]] = {"context": context_differs, "cache": cache_differs}
        reasons = {path: _reason(checks[path], exact, ids, plain) for path in claims}
    return {path: reason for path, reason in reasons.items() if reason}


def _reason(check: Callable[..., str | None], *args: object) -> str | None:
    try:
        return check(*args)
    except Exception as error:  # a model can raise anything
        return f"it fails ({one_line(error)})"


def one_line(error: BaseException) -> str:
    """Return the class and message of an exception on one line of at most 120 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Compute float32 products in full precision: without autocast and without TF32 or bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_of(model).type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def exact_copy(model: Network) -> Network:
    """Return a copy in float32, without rounding kernels, and with noise in parameters that are all zero."""
    exact = copy.deepcopy(model).float().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in exact.parameters():
        if not parameter.any():
            parameter.copy_(NOISE * torch.randn(parameter.shape, generator=generator))
    for module in exact.modules():
        if hasattr(type(module), "exact"):  # a layer whose kernel rounds, such as `cpu.int8.Int8Linear`
            setattr(module, "exact", True)  # noqa: B010  (mypy expects a module's attributes to be tensors)
    return exact


def random_ids(model: nn.Module, length: int) -> torch.Tensor:
    """Return `(2, length)` random ids of a model's vocabulary on its device; the seed is fixed."""
    device = device_of(model)
    vocab_size = model(torch.zeros(1, 1, dtype=torch.int64, device=device)).shape[-1]
    return torch.randint(vocab_size, (2, length), generator=torch.Generator().manual_seed(0)).to(device)


def differs(logits: torch.Tensor, plain: torch.Tensor, tolerance: float = TOLERANCE) -> str | None:
    """Describe how logits differ from the plain ones; None if they agree within `tolerance` times the plain range."""
    finite = plain.isfinite()  # a model may exclude an id with -inf
    if not torch.equal(logits.isfinite(), finite):
        return "it gives logits that are not finite where the plain forward does not"
    logits, plain = logits[finite].float(), plain[finite].float()
    spread, away = (plain.max() - plain.min()).item(), (logits - plain).abs().max().item()
    if away <= tolerance * spread:
        return None
    return f"its logits differ by {away:.2g}, and their range is {spread:.3g}"


def context_differs(model: HasContext, ids: torch.Tensor, plain: torch.Tensor) -> str | None:
    """Compare the logits after windows of `context_size` ids with the logits after all ids."""
    size = model.context_size
    windows = ids.unfold(1, size, 1).flatten(0, 1) if ids.shape[1] >= size else ids
    return differs(model(windows)[:, -1], plain[:, windows.shape[1] - 1 :].flatten(0, 1))


def cache_differs(
    model: HasCache,
    ids: torch.Tensor,
    plain: torch.Tensor,
    tolerance: float = TOLERANCE,
    step: CompiledStep | None = None,
) -> str | None:
    """Compare the logits with a cache: most ids at once and the last ones one by one, in rows of unequal length.

    Args:
        model: The model.
        ids: `(2, T)` ids.
        plain: The logits of its plain forward for these ids.
        tolerance: The share of the plain logits' range by which logits may differ.
        step: The function that computes one id per row; None for the model.
    """
    step = model if step is None else step
    length = ids.shape[1]
    first = max(1, length - ONE_BY_ONE)
    second = max(1, first // 2)  # the length of the second row, which is padded as generation pads it
    prompt = ids[:, :first].clone()
    prompt[1, second:] = ids[1, 0]
    cache = model.new_cache(2)
    logits = model(prompt, cache)
    if difference := differs(logits[0], plain[0, :first], tolerance):
        return difference
    if difference := differs(logits[1, :second], plain[1, :second], tolerance):
        return difference
    ends = [first, second]
    cache.length = torch.tensor(ends, device=ids.device)
    for n in range(length - first):
        positions = [end + n for end in ends]
        new = torch.stack([row[position] for row, position in zip(ids, positions, strict=True)])[:, None]
        expected = torch.stack([row[position] for row, position in zip(plain, positions, strict=True)])
        if difference := differs(step(new, cache)[:, -1], expected, tolerance):
            return difference
    return None
