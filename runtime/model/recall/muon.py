"""The Muon optimizer in fp32 for many matrices of few shapes.

torch.optim.Muon orthogonalizes one matrix at a time in bf16, which CPUs without bf16 units do several times slower.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch

_MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon:
    """Momentum whose update is orthogonalized by Newton-Schulz iterations; all matrices of a shape in one batch."""

    def __init__(self, matrices: Iterable[torch.nn.Parameter], rate: float) -> None:
        self.rate = rate
        by_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            by_shape[matrix.shape].append(matrix)
        self._groups = [(group, torch.zeros(len(group), *shape)) for shape, group in by_shape.items()]

    @torch.no_grad()
    def step(self) -> None:
        """Updates every matrix from its gradient, and drops the gradient."""
        for group, momentum in self._groups:
            gradient = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            update = orthogonalized(gradient.lerp(momentum, _MOMENTUM))
            rows, columns = update.shape[-2:]
            scale = self.rate * max(1.0, rows / columns) ** 0.5
            for matrix, change in zip(group, update, strict=True):
                matrix.sub_(change, alpha=scale)
                matrix.grad = None


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrix of each of a batch (count, rows, columns), approximately."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: torch.Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
