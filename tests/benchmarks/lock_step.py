"""How long eight ranks that run rows in lock step take, over what they would take if none ever waited.

    python -m tests.benchmarks.lock_step

No model: made-up lengths, and the code that shares groups out and plans rows. A rollout step has the prompts,
completions and minibatches of `configs/experiment/published.yaml`. Prompts are gamma distributed around 700 tokens with
a coefficient of variation of 0.3. Each prompt has a mean length of its completions, gamma distributed with a
coefficient of 0.6, and its completions are gamma distributed around that, with 0.6 again, and cut at
`sampling.max_new_tokens`. The time of a row is its tokens: of the 8B policy's operations, attention has about 3 %.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import zip_longest
from typing import NamedTuple

import torch
from omegaconf import OmegaConf

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import deal, divide
from src.training.ranks import shares_of_minibatches
from src.training.row_plan import RowBudget
from tests.conftest import ROOT

RANKS = 8
BOUNDS = {200: 1.10, 400: 1.15, 800: 1.05}
"""Largest ratio, by the mean length of completions before they are cut."""
log = logging.getLogger("lock_step")


class Ratios(NamedTuple):
    """Time over the time of ranks that never wait.

    Attributes:
        before: prompts are shared out before sampling, by the longest completions that they could have.
        after: groups are shared out after sampling, and all ranks have as many rows.
        scoring: the same for one forward pass over all minibatches but the first.
        total: `after` where ranks wait at the end of each minibatch alone, as under DDP.
    """

    before: float
    after: float
    scoring: float
    total: float


def simulate(mean: int, seed: int) -> Ratios:
    """Ratios of one rollout step of the published experiments.

    Args:
        mean: tokens of a completion.
        seed: of the lengths.
    """
    published = OmegaConf.load(ROOT / "configs/experiment/published.yaml")
    budget = RowBudget(OmegaConf.load(ROOT / "configs/train.yaml").updates.max_row_tokens)
    draw, longest = random.Random(seed), published.sampling.max_new_tokens
    groups = [_group(draw, mean, published.sampling.n, longest) for _ in range(published.data.prompts_per_step)]
    minibatches = _parts(groups, published.updates.prompts_per_minibatch)
    costs = [[budget.cost(group) for group in part] for part in minibatches]
    estimates = [[len(group.prompt_ids) + published.sampling.n * longest for group in part] for part in minibatches]
    ideal = sum(map(sum, costs)) / RANKS

    before = _shared(minibatches, shares_of_minibatches(estimates, RANKS, divide))
    after = _shared(minibatches, shares_of_minibatches(costs, RANKS, partial(deal, max_tokens=budget.max_tokens)))
    scored = [[group for part in of_rank for group in part] for of_rank in zip(*after[1:], strict=True)]
    totals = [max(sum(map(budget.cost, of_rank)) for of_rank in part) for part in after]
    return Ratios(
        sum(_lock_step(budget, part, level=False) for part in before) / ideal,
        sum(_lock_step(budget, part, level=True) for part in after) / ideal,
        _lock_step(budget, scored, level=True) / (sum(map(sum, costs[1:])) / RANKS),
        sum(totals) / ideal,
    )


def _group(draw: random.Random, mean: float, n: int, longest: int) -> PromptGroup:
    prompt, typical = _gamma(draw, 700, 0.3), _gamma(draw, mean, 0.6)
    lengths = [max(1, min(longest, round(_gamma(draw, typical, 0.6)))) for _ in range(n)]
    ids, numbers = torch.zeros((), dtype=torch.int64), torch.zeros(())
    total = sum(lengths)
    return PromptGroup(
        prompt_ids=ids.expand(max(1, round(prompt))),
        token_ids=ids.expand(total),
        lengths=torch.tensor(lengths),
        rollout_logprobs=numbers.expand(total),
        regions=ids.expand(total),
        rewards=numbers.expand(n),
        advantages=numbers.expand(n),
        weights=numbers.expand(total),
    )


def _gamma(draw: random.Random, mean: float, variation: float) -> float:
    shape = variation**-2
    return draw.gammavariate(shape, mean / shape)


def _parts(groups: Sequence[PromptGroup], size: int) -> list[Sequence[PromptGroup]]:
    return [groups[start : start + size] for start in range(0, len(groups), size)]


def _shared(
    minibatches: Iterable[Sequence[PromptGroup]], shares: Iterable[list[list[int]]]
) -> list[list[list[PromptGroup]]]:
    """The groups of each rank, for each minibatch."""
    return [
        [[part[index] for index in share] for share in of_ranks]
        for part, of_ranks in zip(minibatches, shares, strict=True)
    ]


def _lock_step(budget: RowBudget, groups: Sequence[Sequence[PromptGroup]], *, level: bool) -> int:
    """Tokens of the longest rows that run at the same time, added up.

    Args:
        budget: makes the rows.
        groups: of each rank.
        level: all ranks make as many rows, the longest first; otherwise those with fewer run empty rows at the end.
    """
    plans = [budget.plan(part) for part in groups]
    if level:
        most = max(len(plan.rows) for plan in plans)
        plans = [budget.plan(part, least=most) for part in groups]
    tokens = [[sum(map(budget.cost, plan.row(row))) for row in plan.rows] for plan in plans]
    return sum(max(together) for together in zip_longest(*tokens, fillvalue=0))


def main() -> None:
    """Print the ratios of three steps for each mean length."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    log.info("mean  bound  %s", "  ".join(f"{name:>7}" for name in Ratios._fields))
    for mean, bound in BOUNDS.items():
        for seed in range(3):
            log.info("%4d  %5.2f  %s", mean, bound, "  ".join(f"{ratio:7.3f}" for ratio in simulate(mean, seed)))


if __name__ == "__main__":
    main()
