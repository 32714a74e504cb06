"""The decay of the moving average (EMA) of the trainable parameters, and how far it is behind.

With a constant decay of 0.9999, an average still consists of the initial weights to 61 % after
5,000 steps. So the decay warms up: at step s it is at most (1 + s) / (10 + s).
"""
from dataclasses import dataclass

VISIBLE_SHARE = 1e-3    # of the initial weights in the average: from here on it is reported


@dataclass
class AverageLag:
    """What the average consists of, known without looking at it.

    :param decay: largest decay per step, 0…1
    :param warm_up: whether the decay warms up; that of versions before 0.5.0 did not
    :param initial_share: share of the initial weights in the average, 0…1
    :param steps: mean age of the weights in the average, in steps
    """
    decay: float
    warm_up: bool = True
    initial_share: float = 1.0
    steps: float = 0.0

    def decay_at(self, step):
        """Decay at step 1, 2, …"""
        return min(self.decay, (1 + step) / (10 + step)) if self.warm_up else self.decay

    def advance(self, step):
        """Accounts for one step that was not skipped."""
        decay = self.decay_at(step)
        self.initial_share *= decay
        self.steps = decay * (self.steps + 1)

    def describe(self):
        """A phrase for the log."""
        text = f"EMA {self.steps:.0f} steps behind"
        if self.initial_share >= VISIBLE_SHARE:
            text += f", {self.initial_share:.1%} of it the initial weights"
        return text

    def metadata(self):
        """What a state file records, JSON-serializable."""
        return {"warm_up": self.warm_up, "initial_share": self.initial_share, "steps": self.steps}

    @classmethod
    def from_metadata(cls, decay, metadata, updates):
        """The inverse of `metadata`.

        :param metadata: None: of a version before 0.5.0, whose decay was constant
        :param updates: steps so far that were not skipped
        """
        if metadata:
            return cls(decay, metadata["warm_up"], metadata["initial_share"], metadata["steps"])
        share = decay ** updates
        return cls(decay, False, share, decay * (1 - share) / (1 - decay))
