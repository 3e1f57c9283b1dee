"""The article's model: an embedding and a linear layer. It predicts a character from the one before it alone."""

import torch
from torch import nn

from minigpt.errors import check_number


class TinyGPT(nn.Module):
    """A bigram model: the logits of the next id depend on the current id only.

    Args:
        vocab_size: `V`, the number of distinct ids.
        n_embd: `C`, the width of the embedding.
        block_size: `T`, the longest window that the model is given in training.

    Raises:
        MiniGPTError: A size is not a positive number.
    """

    context_size = 1  # how many of the last ids its prediction depends on

    def __init__(self, vocab_size: int, n_embd: int = 64, block_size: int = 64):
        super().__init__()
        self.config = {"vocab_size": vocab_size, "block_size": block_size, "n_embd": n_embd}
        for name, size in self.config.items():
            check_number(name, size, at_least=1, whole=True)
        self.block_size = block_size
        self.embed = nn.Embedding(vocab_size, n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        """`(B, T)` ids to `(B, T, V)` logits."""
        return self.lm_head(self.embed(idx))
