"""Ranger: RAdam (Liu et al. 2020, as torch has it) inside Lookahead (Zhang et al. 2019, algorithm 1).

T2VLAD and CE are trained with it (thesis section 6.3.1); weight decay is decoupled, as in the implementations that
these used. Defaults of betas, eps, steps and share are Ranger's.
"""

from collections.abc import Iterable

import torch

__all__ = ["Ranger"]


class Ranger(torch.optim.RAdam):
    """RAdam whose weights every `steps` steps go back to `share` of the way from where they were then ("slow").

    All state is tensors under each parameter ("slow" beside RAdam's), so that a checkpoint holds it.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        weight_decay: float = 0.0,
        *,
        steps: int = 6,
        share: float = 0.5,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay=True)
        self.steps, self.share = steps, share

    @torch.no_grad()
    def step(self, closure=None):
        """One step; `closure` as torch's."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        before = {p: p.detach().clone() for p in parameters if p.grad is not None and "slow" not in self.state[p]}
        loss = super().step(closure)
        for p in parameters:
            if p.grad is None:
                continue
            state = self.state[p]
            slow = state.setdefault("slow", before.get(p))
            if int(state["step"]) % self.steps == 0:
                slow.lerp_(p, self.share)
                p.copy_(slow)
        return loss
