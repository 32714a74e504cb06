"""."""

import torch

from training import checkpoint as checkpoints
from training.step import learning_rate


class TrainingState:
    """What a run is after a step: weights that train, their EMA, the optimizer's moments, and the log's running sums."""

    def __init__(self, trained, args):
        self.trained, self.args = trained, args
        self.ema = {k: p.detach().clone() for k, p in trained.items()}
        self.optimizer = torch.optim.AdamW(trained.values(), args.lr, weight_decay=args.weight_decay, fused=True)
        for p in trained.values():  # as AdamW itself would at the first step
            self.optimizer.state[p] = dict(step=torch.zeros((), device=p.device), exp_avg=torch.zeros_like(p),
                                           exp_avg_sq=torch.zeros_like(p))
        self.step = self.skipped = self.in_a_row = self.count = 0  # count: steps in the sums of the log line to come
        self.sums = torch.zeros(3, device=args.device)
        self._unsettled = []

    def update(self, losses, bad):
        """One step of AdamW on the compute_gradients, and of the EMA; where `bad` is 1 nothing changes."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.args, self.step)
        self.optimizer.found_inf = bad  # as torch.amp.GradScaler tells a fused optimizer
        self.optimizer.step()
        weight = (1 - self.args.ema_decay) * (1 - bad)
        for k, p in self.trained.items():
            self.ema[k].lerp_(p.detach(), weight)
        self.sums += torch.where(bad > 0, torch.zeros_like(losses), losses)
        self._unsettled.append(torch.stack([bad, losses[0]]))

    def settle(self):
        """Waits for the device, and returns what it left out since the last call: [(step, loss, how many in a row by then)]."""
        bad_steps, seen = [], torch.stack(self._unsettled).tolist() if self._unsettled else []
        self._unsettled = []
        for step, (bad, loss) in enumerate(seen, self.step - len(seen) + 1):
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if bad:
                bad_steps.append((step, loss, self.in_a_row))
        self.skipped += len(bad_steps)
        self.count += len(seen) - len(bad_steps)
        return bad_steps

    def new_log_line(self):
        self.sums.zero_()
        self.count = 0

    def weights(self):
        return dict(ema=self.ema, raw=self.trained)

    def groups(self):
        return self.weights() | {m: {k: self.optimizer.state[p][m] for k, p in self.trained.items()} for m in ("exp_avg", "exp_avg_sq")}

    def meta(self):
        """Of a settled state."""
        return dict(step=self.step, skipped=self.skipped, log_sums=self.sums.tolist(), log_count=self.count)

    def load(self, path, meta):
        """The inverse of saving `groups` and `meta`."""
        checkpoints.load_into(path, **self.groups())
        self.step, self.skipped, self.count = meta["step"], meta.get("skipped", 0), meta["log_count"]
        self.sums.copy_(torch.tensor(meta["log_sums"]))
        for p in self.trained.values():
            self.optimizer.state[p]["step"].fill_(self.step - self.skipped)
