"""What a training run is between two steps: parameters, their average, optimizer, log sums."""
import contextlib
from typing import NamedTuple

import torch

from training.average import AverageLag
from training.checkpoint import load_into


class SkippedStep(NamedTuple):
    """A step whose loss or gradient was not finite."""
    step: int
    loss: float
    in_a_row: int  # consecutive skipped steps, this one included


class TrainingState:
    """Trainable parameters, their exponential moving average (EMA), AdamW's moments, log sums.

    :param trained: {name: parameter} that trains
    :param ema_decay: largest decay of the average per step, 0…1
    :param ema_warm_up: whether it warms up, see AverageLag
    :param loss_scaler: LossScaler of fp16, or None
    :param foreground: Foreground, the tokens that the model computes; None: all
    """

    def __init__(self, trained, *, lr, weight_decay=0.0, ema_decay=0.9999, ema_warm_up=True,
                 device="cpu", loss_scaler=None, foreground=None):
        self.trained = trained
        self.lag = AverageLag(ema_decay, ema_warm_up)
        self.loss_scaler = loss_scaler
        self.foreground = foreground
        self.ema = {name: p.detach().clone() for name, p in trained.items()}
        self.optimizer = torch.optim.AdamW(trained.values(), lr, weight_decay=weight_decay,
                                           fused=True)
        for p in trained.values():  # as AdamW itself would at the first step, so they can be loaded
            self.optimizer.state[p] = {
                "step": torch.zeros((), device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p)}
        self.step = 0
        self.skipped = 0         # steps left out since the run began
        self.skipped_in_a_row = 0
        self.log_count = 0       # steps in `log_sums`
        self.log_sums = torch.zeros(3, device=device)  # of loss, mse, vb since the last log line
        self._unsettled = []

    def update(self, losses, is_bad, lr):
        """Applies one step of AdamW to the gradients, and updates the EMA; no-op if `is_bad` is 1.

        The number of the step, `step`, has been increased before.

        :param losses: (3,) loss, mse, vb
        :param is_bad: () 1 if the step is to be skipped, else 0
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.found_inf = is_bad  # how torch.amp.GradScaler tells a fused optimizer
        self.optimizer.step()
        weight = (1 - self.lag.decay_at(self.step)) * (1 - is_bad)
        for name, p in self.trained.items():
            self.ema[name].lerp_(p.detach(), weight)
        if self.loss_scaler:
            self.loss_scaler.update(is_bad)
        self.log_sums += torch.where(is_bad > 0, torch.zeros_like(losses), losses)
        self._unsettled.append(torch.stack([is_bad, losses[0]]))

    def settle(self):
        """Waits for the device. Returns the steps skipped since the last call, as SkippedSteps."""
        if not self._unsettled:
            return []
        steps = torch.stack(self._unsettled).tolist()
        self._unsettled = []
        skipped = []
        for step, (is_bad, loss) in enumerate(steps, self.step - len(steps) + 1):
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if is_bad else 0
            if is_bad:
                skipped.append(SkippedStep(step, loss, self.skipped_in_a_row))
            else:
                self.lag.advance(step)
        self.skipped += len(skipped)
        self.log_count += len(steps) - len(skipped)
        return skipped

    @contextlib.contextmanager
    def averaged_weights(self):
        """Within this context the model has the EMA weights; after it, its own again, bitwise."""
        raw = {name: p.detach().clone() for name, p in self.trained.items()}
        try:
            _copy_into(self.trained, self.ema)
            yield
        finally:
            _copy_into(self.trained, raw)

    def start_log_line(self):
        """Resets the sums of the log."""
        self.log_sums.zero_()
        self.log_count = 0

    # ---------------------------------------------------------------------------- save and load

    def weights(self):
        """The groups of a checkpoint: {"ema": {name: tensor}, "raw": {name: tensor}}, and
        "foreground" if not all tokens are computed."""
        groups = {"ema": self.ema, "raw": self.trained}
        if self.foreground:
            groups["foreground"] = self.foreground.tensors()
        return groups

    def groups(self):
        """The groups of a state to resume from: weights and AdamW's moments."""
        groups = self.weights()
        for moment in ("exp_avg", "exp_avg_sq"):
            groups[moment] = {name: self.optimizer.state[p][moment]
                              for name, p in self.trained.items()}
        return groups

    def metadata(self):
        """Counts and sums of a settled state, JSON-serializable."""
        scaling = {"loss_scaling": self.loss_scaler.metadata()} if self.loss_scaler else {}
        return {"step": self.step, "skipped": self.skipped, "log_sums": self.log_sums.tolist(),
                "log_count": self.log_count, "average": self.lag.metadata(), **scaling}

    def load(self, path, metadata):
        """Loads a state file, whose metadata is given: the inverse of `groups` and `metadata`."""
        load_into(path, **self.groups())
        self.step = metadata["step"]
        self.skipped = metadata.get("skipped", 0)
        self.log_count = metadata["log_count"]
        self.log_sums.copy_(torch.tensor(metadata["log_sums"]))
        self.lag = AverageLag.from_metadata(self.lag.decay, metadata.get("average"),
                                            self.step - self.skipped)
        if self.loss_scaler and "loss_scaling" in metadata:
            self.loss_scaler.load(metadata["loss_scaling"])
        for p in self.trained.values():
            self.optimizer.state[p]["step"].fill_(self.step - self.skipped)


def _copy_into(parameters, values):
    for name, p in parameters.items():
        p.data.copy_(values[name])
