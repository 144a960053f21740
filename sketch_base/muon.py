"""An optimiser step for weight matrices: momentum, then the nearest orthogonal matrix (Newton-Schulz)."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def orthogonal(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Approximate U V^T of the singular value decomposition of each of (count, rows, columns) matrices, in bf16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = (x.mT if tall else x).to(torch.bfloat16).contiguous()
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised per weight (convolutions as matrices), scaled to Adam's step size.

    Weights of one shape are treated together: a small network has many of each.
    """

    def __init__(self, params: Iterable[torch.Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[torch.Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape.setdefault((weight.shape[0], weight[0].numel()), []).append(weight)
            for shape, weights in by_shape.items():
                updates = orthogonal(torch.stack([self._momentum(weight, group["momentum"]) for weight in weights]))
                scale = 0.2 * max(shape) ** 0.5
                for weight, update in zip(weights, updates, strict=True):
                    weight.add_(update.view_as(weight), alpha=-group["lr"] * scale)

    def _momentum(self, weight: torch.Tensor, momentum: float) -> torch.Tensor:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        assert weight.grad is not None
        state["momentum"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(state["momentum"], momentum).reshape(weight.shape[0], -1)
