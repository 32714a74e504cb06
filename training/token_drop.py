"""Steps that leave out a part of the tokens: less work and less memory for each of them.

`--token-drop` leaves them out of all blocks, and the loss is the mean over the others, as in masked
training (MaskDiT, Zheng et al. 2023, arXiv 2306.09305, without its decoder). `--token-route` lets
them bypass the blocks in the middle and rejoin, and the loss is the mean over all tokens (TREAD,
Krause et al. 2025, arXiv 2501.04765). Each sample draws its own tokens. The last `--full-steps`
compute all of them, as sampling does.
"""
from dataclasses import dataclass
from functools import partial

from utils.errors import UserError


@dataclass(frozen=True)
class TokenDrop:
    """Which steps leave out how many tokens, of which blocks.

    :param share: of the tokens that the model computes, above 0 and below 1
    :param blocks: range of the indices of the blocks that tokens bypass
    :param depth: number of blocks of the model
    :param max_steps: last step of the run
    :param full_steps: number of last steps that compute all tokens
    """
    share: float
    blocks: range
    depth: int
    max_steps: int
    full_steps: int

    @property
    def numbers(self):
        """The first and the last of the blocks that tokens bypass, counted from 1."""
        return [self.blocks.start + 1, self.blocks.stop]

    def passing(self, tokens):
        """Number of tokens that pass all blocks, of those that the model computes."""
        return max(1, tokens - round(self.share * tokens))

    def passing_at(self, step, tokens):
        """Number of tokens to draw at a step 1…max_steps; 0: nothing is drawn, all pass."""
        is_full = step > self.max_steps - self.full_steps
        return 0 if is_full else self.passing(tokens)

    def tokens_by_block(self, tokens):
        """Number of tokens that each block computes, a list, in a step that leaves some out."""
        return [self.passing(tokens) if i in self.blocks else tokens for i in range(self.depth)]

    def describe(self, tokens):
        """A line for the user.

        :param tokens: that the model computes
        """
        first, last = self.numbers
        where = "all blocks" if len(self.blocks) == self.depth else f"blocks {first} to {last}"
        line = (f"steps 1 to {self.max_steps - self.full_steps} compute {self.passing(tokens):,} "
                f"of {tokens:,} tokens in {where}")
        return line + (f", the last {self.full_steps} all" if self.full_steps else "")


def plan(*, drop, route, route_blocks, full_steps, depth, max_steps):
    """The TokenDrop of these flags of train.py, or None if every step computes all tokens.

    :param drop, route: shares of the tokens, at most one above 0
    :param route_blocks: first and last block that routed tokens bypass, counted from 1; None:
        `middle_blocks`
    :param depth: number of blocks
    :raises UserError: they contradict each other
    """
    if drop and route:
        raise UserError(f"--token-drop {drop:g}: give it or --token-route, not both")
    for flag, share in (("--token-drop", drop), ("--token-route", route)):
        if share >= 1:
            raise UserError(f"{flag} {share:g}: a share of the tokens, must be below 1")
    if route_blocks and not route:
        raise UserError("--route-blocks: needs --token-route")
    if not drop and not route:
        if full_steps:
            raise UserError(f"--full-steps {full_steps}: needs --token-drop or --token-route")
        return None
    if full_steps >= max_steps:
        raise UserError(f"--full-steps {full_steps}: must be below the run's {max_steps} steps")
    blocks = range(depth) if drop else _routed_blocks(route_blocks, depth)
    return TokenDrop(drop or route, blocks, depth, max_steps, full_steps)


def _routed_blocks(route_blocks, depth):
    if route_blocks is None:
        return middle_blocks(depth)
    first, last = route_blocks
    if not 1 <= first <= last <= depth or (first, last) == (1, depth):
        raise UserError(f"--route-blocks {first} {last}: must be the first and the last of some, "
                        f"but not all, of the model's {depth} blocks")
    return range(first - 1, last)


def middle_blocks(depth):
    """All blocks but the first two and the last four; of shallow models fewer are left out."""
    return range(min(2, depth // 4), depth - min(4, depth // 3))


def network_and_positions(model, passing):
    """What computes a step's prediction, and where its loss is taken.

    :param model: models.DiT
    :param passing: see `models.DiT.forward`; None: all tokens
    :return: network called (x, t, y); positions, see `training_losses`
    """
    if passing is None:
        return model, model.kept_latents
    network = partial(model, passing=passing)
    if len(model.bypassed) < len(model.blocks):
        return network, model.kept_latents
    return network, model.latents_of(passing)  # the others pass no block at all
