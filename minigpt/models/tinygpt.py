"""The article's model: an embedding and a linear layer. It predicts a token only from the token before it."""

import torch
from torch import nn

from minigpt.errors import check_sizes


class TinyGPT(nn.Module):
    """A bigram model: the logits of the next id depend on the current id only.

    Args:
        vocab_size: `V`, the number of distinct ids.
        n_embd: `C`, the width of the embedding (`n_embed` in the article).
        block_size: The length of the windows in training; the layers take any length.

    Raises:
        MiniGPTError: A size is not a positive number.
    """

    # The prediction depends on the last id only, so generation can compute a table once, with a row for each last id.
    context_size = 1

    def __init__(self, vocab_size: int, n_embd: int = 64, block_size: int = 64):
        super().__init__()
        # A checkpoint stores these arguments, with which the model is built again.
        self.config = {"vocab_size": vocab_size, "block_size": block_size, "n_embd": n_embd}
        check_sizes(self.config)
        self.block_size = block_size
        self.embed = nn.Embedding(vocab_size, n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        """Return the `(B, T, V)` logits of a batch of `B` windows of `T` ids, `(B, T)`."""
        return self.lm_head(self.embed(idx))
