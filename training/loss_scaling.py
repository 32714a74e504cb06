"""Loss scaling for fp16, whose smallest gradients would otherwise become zero.

Micikevicius et al. 2018, "Mixed Precision Training", section 3.2; with the constants of
torch.amp.GradScaler, but nothing waits for the device.
"""
import torch

INITIAL_SCALE = 2.0 ** 16
GROWTH_INTERVAL = 2000      # steps without overflow after which the scale is doubled
MIN_SCALE = 1.0


class LossScaler:
    """A power of two by which the loss is multiplied before the backward pass.

    A step whose gradients overflow halves it and changes nothing else.

    :param device: of the model
    """

    def __init__(self, device="cpu"):
        self.scale = torch.tensor(INITIAL_SCALE, device=device)
        self.good_steps = torch.tensor(0, device=device)   # since the scale last changed

    def unscale(self, parameters):
        """Divides the gradients of these parameters by the scale, in place; exact."""
        inverse = 1 / self.scale
        for p in parameters:
            p.grad.mul_(inverse)

    def update(self, is_bad):
        """Halves the scale after an overflow, doubles it after GROWTH_INTERVAL steps without one.

        :param is_bad: () 1 if gradients overflowed, else 0
        """
        bad = is_bad > 0
        good_steps = torch.where(bad, 0, self.good_steps + 1)
        grows = good_steps >= GROWTH_INTERVAL
        smaller = (self.scale / 2).clamp(min=MIN_SCALE)
        # in place, as a captured graph reads the scale where it was
        self.scale.copy_(torch.where(bad, smaller,
                                     torch.where(grows, self.scale * 2, self.scale)))
        self.good_steps.copy_(torch.where(grows, 0, good_steps))

    def metadata(self):
        """Scale and count, JSON-serializable; waits for the device."""
        return {"scale": self.scale.item(), "good_steps": int(self.good_steps)}

    def load(self, metadata):
        """The inverse of `metadata`."""
        self.scale.fill_(metadata["scale"])
        self.good_steps.fill_(metadata["good_steps"])
