"""Muon for convolutions, AdamW for everything else, as one optimizer.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the step's size that of an AdamW step, as in J. Liu et
al., "Muon is scalable for LLM training", 2025. torch.optim.Muon takes matrices only.
"""

import torch
from torch import Tensor

MOMENTUM = 0.95
NEWTON_SCHULZ = (
    3.4445,
    -4.7750,
    2.0315,
)  # coefficients that bring all singular values near 1 in a few rounds
ROUNDS, SMALLEST_SIDE = 5, 16


class MuonAdamW(torch.optim.AdamW):
    """torch.optim.AdamW, but groups with `muon=True` take Muon's step: the gradients' momentum with all its singular values made about 1."""

    @torch.no_grad()
    def step(self, closure=None):
        """One update; gradients are there already, so no closure is needed."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group.get("muon")]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            for weight in group["params"] if group.get("muon") else ():
                if weight.grad is not None:
                    self._orthogonal_step(weight, group["lr"])
        return loss

    def _orthogonal_step(self, weight: Tensor, lr: float) -> None:
        state = self.state[weight]
        if not state:
            state |= {
                "momentum": torch.zeros_like(weight),
                "step": torch.zeros(()),
            }  # AdamW's load_state_dict looks for a step everywhere
        momentum = state["momentum"]
        momentum.lerp_(weight.grad, 1 - MOMENTUM)
        update = orthogonal(weight.grad.lerp(momentum, MOMENTUM).flatten(1))
        weight.sub_(update.view(weight.shape), alpha=lr * 0.2 * max(update.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix (m, n) with the same singular vectors and singular values of about 1 (0.7 to 1.2), by Newton-Schulz rounds in bf16."""
    x = matrix.bfloat16().mT if matrix.shape[0] > matrix.shape[1] else matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


def takes_muon(weight: Tensor) -> bool:
    """Whether this is a convolution's weight that is a matrix of some size on both sides."""
    return weight.dim() == 4 and min(len(weight), weight[0].numel()) >= SMALLEST_SIDE
