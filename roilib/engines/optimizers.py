"""What trains the weights: AdamW, or Muon for convolutions and AdamW for the rest.

Muon: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024, with the
step size of J. Liu et al., "Muon is scalable for LLM training", 2025.

Muon is written out here because torch.optim.Muon takes matrices only and computes in bf16, which a
CPU may have to emulate.
"""

import torch
from torch import Tensor, nn

from roilib.parameters import Parameters

MUON_LR = 2.5  # of Muon's group, in units of max_lr
LINEAR_LR = 0.25  # of the transforms that start as a DCT, in units of max_lr
GAIN_LR = 100.0  # of the ROI's gains, logarithms that have far to go, in units of max_lr
MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c of a round: x ← a x + b (x xᵀ) x + c (x xᵀ)² x
ROUNDS = 5
MIN_SIDE = 16  # of a weight that Muon trains, seen as a matrix


def make_optimizer(p: Parameters, weights: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of these named weights; each group's learning rate is its peak."""
    settings = {"lr": p.max_lr, "fused": p.precision != "16"}
    gains = {name for name in weights if name.startswith("roi_")}
    matrices, transforms = set(), set()
    if p.optimizer == "muon":
        transforms = {name for name in weights if name.startswith(("a_lin", "s_lin"))}
        matrices = {name for name, v in weights.items() if takes_muon(v)} - transforms
    kinds = [
        (matrices, {"lr": MUON_LR * p.max_lr, "muon": True}),
        (transforms, {"lr": LINEAR_LR * p.max_lr}),
        (gains, {"lr": GAIN_LR * p.max_lr, "weight_decay": 0.0}),
        (weights.keys() - matrices - transforms - gains, {}),
    ]
    groups = [
        {"params": [v for name, v in weights.items() if name in names]} | options
        for names, options in kinds
        if names
    ]
    return (MuonAdamW if p.optimizer == "muon" else torch.optim.AdamW)(groups, **settings)


class MuonAdamW(torch.optim.AdamW):
    """torch.optim.AdamW, except that groups with `muon=True` take Muon's step.

    Muon's step is the gradients' momentum with all its singular values made about 1.
    """

    @torch.no_grad()
    def step(self, closure=None):
        """One update."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group.get("muon")]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            for weight in group["params"] if group.get("muon") else ():
                if weight.grad is not None:
                    self._muon_step(weight, group["lr"])
        return loss

    def _muon_step(self, weight: Tensor, lr: float) -> None:
        state = self.state[weight]
        if not state:  # AdamW's load_state_dict expects a step in every state
            state |= {"momentum": torch.zeros_like(weight), "step": torch.zeros(())}
        momentum = state["momentum"]
        momentum.lerp_(weight.grad, 1 - MOMENTUM)
        update = orthogonal(weight.grad.lerp(momentum, MOMENTUM).flatten(1))
        weight.sub_(update.view(weight.shape), alpha=lr * 0.2 * max(update.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix (m, n) with the same singular vectors and singular values of about 1 (0.7 to 1.2).

    A Newton-Schulz round is x ← P x, with P a polynomial of the first x xᵀ. So the Ps are
    multiplied first, in the dimension of the shorter side: three to five times cheaper.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    gram = x @ x.mT
    product = one = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for _ in range(ROUNDS):
        factor = a * one + b * gram + c * gram @ gram
        product, gram = factor @ product, factor @ gram @ factor
    x = product @ x
    return x.mT if tall else x


def takes_muon(weight: Tensor) -> bool:
    """Whether a weight is a convolution's and has MIN_SIDE rows and columns as a matrix."""
    return weight.dim() == 4 and min(len(weight), weight[0].numel()) >= MIN_SIDE
