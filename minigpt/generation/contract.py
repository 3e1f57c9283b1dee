"""Checks that a network maps `(B, T)` ids to `(B, T, V)` logits."""

import torch
from torch import nn

from minigpt.errors import MiniGPTError
from minigpt.models import device_of, with_location

RULE = "A network takes (B, T) ids and returns (B, T, V) logits, one score for each token of the vocabulary."


def plain_logits(model: nn.Module, idx: torch.Tensor) -> torch.Tensor:
    """Return the `(B, T, V)` logits of a network for `(B, T)` ids.

    Raises:
        MiniGPTError: The network returns something other than such logits.
    """
    logits = model(idx)
    if not isinstance(logits, torch.Tensor):
        raise MiniGPTError(f"The forward of {type(model).__name__} returns a {type(logits).__name__}. {RULE}")
    if logits.dim() != 3 or logits.shape[:2] != idx.shape:
        raise MiniGPTError(
            f"The forward of {type(model).__name__} returns {tuple(logits.shape)} for {tuple(idx.shape)} ids. {RULE}"
        )
    return logits


@torch.no_grad()
def check_network(model: nn.Module, vocab_size: int, block_size: int) -> None:
    """Check on windows of two ids that a network takes the data's ids, returns logits, and does not see later ids.

    Raises:
        MiniGPTError: The network does not take the ids or a window of this length, returns something other than logits,
            or sees later ids.
    """
    name, longest = type(model).__name__, getattr(model, "block_size", None)
    if longest is not None and longest < block_size:
        raise MiniGPTError(
            f"The data have a block_size of {block_size}, and {name} has {longest}. Give the network the data's."
        )
    was_training = model.training
    ids = torch.tensor([[vocab_size - 1] * min(2, block_size)], device=device_of(model))
    other = ids.clone()
    other[:, 1:] = 0
    try:
        model.eval()
        logits, after_other, again = (plain_logits(model, idx) for idx in (ids, other, ids))
    except IndexError as error:
        raise MiniGPTError(
            f"The data have a vocab_size of {vocab_size}, but {name} does not accept the id {vocab_size - 1}. Give the "
            "network the data's vocab_size."
        ) from error
    except NotImplementedError as error:
        raise MiniGPTError(f"{name} has no forward. {RULE}") from error
    except MiniGPTError:
        raise
    except Exception as error:  # user code can raise anything
        raise MiniGPTError(f"{name} fails on two ids: {with_location(error)}. {RULE}") from error
    finally:
        model.train(was_training)
    if logits.shape[-1] < vocab_size:
        raise MiniGPTError(
            f"The data have a vocab_size of {vocab_size}, but {name} scores {logits.shape[-1]} tokens. Give the "
            "network the data's vocab_size."
        )
    change = (after_other - logits)[:, 0].abs().max()
    if logits.equal(again) and change > 1e-4 * (logits.max() - logits.min()):
        raise MiniGPTError(
            f"The logits of {name} at a position change with later ids, so it sees the ids that it should predict. "
            "Mask the later positions."
        )
