"""A network of one's own: a GRU, trained, looked at and exported with the same commands as the project's networks.

From the root of the repository:

    python scripts/train.py --config examples/gru.yaml --allow_code examples.gru
    python scripts/train.py --ckpt_path last --allow_code examples.gru --trainer.max_steps 600
    python scripts/evaluate.py --allow_code examples.gru
    python scripts/generate.py --allow_code examples.gru --prompt "un matin,"
    python scripts/export.py --allow_code examples.gru --format onnx --out exported
    python scripts/app.py --allow_code examples.gru

A class that is typed needs no permission: `--model.network examples.gru.GRU --model.network.hidden 64`.
"""

import torch
from torch import nn


class GRU(nn.Module):
    """A recurrent network (Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014).

    Args:
        vocab_size: `V`, the number of tokens; it comes from the data.
        hidden: `C`, the size of the embedding and of the state.
        layers: How many GRUs stand on each other.
    """

    def __init__(self, vocab_size: int, hidden: int = 128, layers: int = 1):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, hidden)
        self.rnn = nn.GRU(hidden, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, vocab_size)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        """`(B, T)` ids to `(B, T, V)` logits."""
        states, _ = self.rnn(self.embed(idx))  # (B, T, C)
        return self.head(states)
