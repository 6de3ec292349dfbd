"""Muon, the optimizer of the weight matrices.

Source: Keller Jordan and others, "Muon: An optimizer for hidden layers in neural networks" (2024),
https://kellerjordan.github.io/posts/muon/. `torch.optim.Muon` does its iteration in bfloat16, which a
processor without bfloat16 instructions emulates at a tenth of the speed; this one stays in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOMENTUM = 0.95
WEIGHT_DECAY = 0.05


def orthogonalized(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The nearest half-orthogonal matrix, roughly: singular values end between about 0.7 and 1.2.

    The quintic Newton-Schulz iteration with the coefficients of the page above.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + torch.addmm(b * gram, gram, gram, alpha=c) @ x
    result: Tensor = x.T if tall else x
    return result


class Muon:
    """Momentum whose every step is orthogonalized. For matrices only; embeddings and norms want AdamW."""

    def __init__(self, matrices: list[Tensor], lr: float) -> None:
        """`lr` is the spectral norm of a step; the weights shrink by `lr * WEIGHT_DECAY` a step."""
        self.matrices = matrices
        self.lr = lr
        self.buffers = [torch.zeros_like(matrix) for matrix in matrices]

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Take one step at `factor` times the learning rate, from the gradients that `backward` left."""
        lr = self.lr * factor
        for matrix, buffer in zip(self.matrices, self.buffers, strict=True):
            if matrix.grad is None:
                continue
            buffer.lerp_(matrix.grad, 1 - MOMENTUM)
            nesterov = matrix.grad.lerp(buffer, MOMENTUM)
            rows, columns = matrix.shape
            matrix.mul_(1 - lr * WEIGHT_DECAY)
            matrix.add_(orthogonalized(nesterov), alpha=-lr * max(1.0, rows / columns) ** 0.5)
