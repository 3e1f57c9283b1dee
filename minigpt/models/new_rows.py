"""Rows for new tokens: the only part of the embedding and of the output layer that trains beside adapters."""

import torch
from torch import Tensor, nn


class ExtendedEmbedding(nn.Embedding):
    """An embedding whose last rows are a module of their own, so that the others can be frozen."""

    new_rows: nn.Embedding

    def forward(self, idx: Tensor) -> Tensor:
        """Return the vectors of the ids, `(..., C)`."""
        known = super().forward(idx.clamp(max=self.num_embeddings - 1))
        new = self.new_rows((idx - self.num_embeddings).clamp(min=0))
        return torch.where((idx < self.num_embeddings)[..., None], known, new)


class ExtendedLinear(nn.Linear):
    """An output layer whose last rows are a module of their own, so that the others can be frozen."""

    new_rows: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, `(..., V)`, with those of the new tokens last."""
        return torch.cat((super().forward(x), self.new_rows(x)), dim=-1)


def split(network: nn.Module, n: int) -> None:
    """Make the rows of the last `n` tokens trainable parameters of their own, in place; all other rows stay frozen.

    The token embedding is the first embedding of the network, and the output layer its last linear layer. If they share
    their weight, they also share the new rows.
    """
    if not n:
        return
    embedding = next(module for module in network.modules() if type(module) is nn.Embedding)
    output = [module for module in network.modules() if type(module) is nn.Linear][-1]
    tied = output.weight is embedding.weight
    C, bias = embedding.embedding_dim, output.bias is not None
    embedding.new_rows = nn.Embedding(n, C, _weight=embedding.weight.detach()[-n:].clone())
    output.new_rows = nn.Linear(C, n, bias, device=output.weight.device, dtype=output.weight.dtype)
    with torch.no_grad():
        output.new_rows.weight.copy_(output.weight[-n:])
        embedding.weight = nn.Parameter(embedding.weight[:-n].clone(), requires_grad=False)
        output.weight = nn.Parameter(output.weight[:-n].clone(), requires_grad=False)
        if output.bias is not None:
            output.new_rows.bias.copy_(output.bias[-n:])
            output.bias = nn.Parameter(output.bias[:-n].clone(), requires_grad=False)
    if tied:
        output.weight, output.new_rows.weight = embedding.weight, embedding.new_rows.weight
    embedding.num_embeddings -= n
    output.out_features -= n
    embedding.__class__, output.__class__ = ExtendedEmbedding, ExtendedLinear


@torch.no_grad()
def join(network: nn.Module) -> None:
    """Put the new rows back under the others, in place; shared weights stay shared."""
    weights: dict[int, nn.Parameter] = {}
    for module in [each for each in network.modules() if isinstance(each, ExtendedEmbedding | ExtendedLinear)]:
        key = id(module.weight)
        module.weight = weights.setdefault(key, nn.Parameter(torch.cat((module.weight, module.new_rows.weight))))
        if isinstance(module, ExtendedEmbedding):
            module.num_embeddings = len(module.weight)
            module.__class__ = nn.Embedding  # type: ignore[assignment]  # its base class
        else:
            if module.bias is not None:
                module.bias = nn.Parameter(torch.cat((module.bias, module.new_rows.bias)))
            module.out_features = len(module.weight)
            module.__class__ = nn.Linear  # type: ignore[assignment]  # its base class
        del module.new_rows
