"""How much of an update is saved where groups have no advantage, and that its gradient stays what it was.

    python -m tests.benchmarks.zero_advantage

A minibatch of 10 groups, a prompt of 100 tokens with 8 completions of 60, of which 0, 30 and 60 % have equal rewards. A
random Qwen3 of 4 layers and 256 features, AdamW included. The treatments (`updates.zero_advantage`) take turns. Seconds
are the processor's, so that other work on the machine counts little. What is saved is over the share left out: 1 is
all of it.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from src.algorithm.experience import PromptGroup
from src.algorithm.policy_loss import LossCounts, LossInputs, PolicyLoss, PolicyLossConfig
from src.models.policy import Policy
from src.training.ranks import Ranks
from src.training.scorer import Scorer
from src.training.settings import UpdateSettings, ZeroAdvantage
from src.training.updater import Updater
from tests.benchmarks.measuring import ratios, take_turns
from tests.benchmarks.models import random_model
from tests.models.reference import random_group
from tests.training.fakes import PlainOptimization, Told

_GROUPS, _PROMPT, _COMPLETIONS, _TOKENS, _VOCABULARY = 10, 100, 8, 60, 4096
_TREATMENTS: tuple[ZeroAdvantage, ...] = ("train", "score", "skip")


class _Loss:
    """ResT's default loss."""

    needs_all_tokens = False

    def counts(self, groups: list[PromptGroup]) -> LossCounts:
        return LossCounts.of(groups)

    def row_loss(self, groups: list[PromptGroup], counts: LossCounts, *, first: bool) -> PolicyLoss:
        return PolicyLoss(LossInputs.of(groups, first=first), PolicyLossConfig(), counts)


class _Update:
    """One treatment's policy and updater; called, an update in seconds.

    Attributes:
        gradient: of the last update, clipped.
    """

    def __init__(self, treatment: ZeroAdvantage, groups: list[PromptGroup]) -> None:
        self._policy, told, self._groups = Policy(random_model(_VOCABULARY, layers=4)), Told(), groups
        optimization = PlainOptimization(torch.optim.AdamW(self._policy.parameters(), lr=0.0))
        settings = UpdateSettings(1, len(groups), zero_advantage=treatment)
        scorer = Scorer(self._policy, Ranks(), settings.max_row_tokens, told)
        self._updater = Updater(scorer, optimization, settings, Ranks(), told, Path())
        optimization.optimizer.register_step_pre_hook(lambda *_: self._note())
        self.gradient = torch.empty(0)

    def __call__(self, _: int) -> float:
        started = time.process_time()
        self._updater.run(self._groups, [len(self._groups)], 0, _Loss(), temperature=1.0, rollout_step=0)
        return time.process_time() - started

    def _note(self) -> None:
        self.gradient = torch.cat([p.grad.flatten() for p in self._policy.parameters() if p.grad is not None])


def minibatch(without: int) -> list[PromptGroup]:
    """Groups of which the first `without` have no advantage."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(_GROUPS):
        group = random_group(_PROMPT, [_TOKENS] * _COMPLETIONS, _VOCABULARY, index)
        advantages = torch.randn(_COMPLETIONS, generator=generator) * (index >= without)
        told = torch.ones(len(group.token_ids))
        made.append(replace(group, advantages=advantages, rollout_entropies=told))
    return made


def compare(percent: int, repeats: int) -> str:
    """A line on a minibatch of which so many groups have no advantage."""
    updates = {treatment: _Update(treatment, minibatch(_GROUPS * percent // 100)) for treatment in _TREATMENTS}
    seconds = take_turns(updates, repeats)
    found = [f"{percent:>2} % left out: train {statistics.median(seconds['train']):.2f} s"]
    for treatment in _TREATMENTS[1:]:
        value, low, high = ratios(seconds[treatment], seconds["train"])
        saved = f", {(1 - value) / percent * 100:.2f} of the share" if percent else ""
        one, other = updates["train"].gradient, updates[treatment].gradient
        gap = float((one - other).norm() / one.norm())
        found.append(f"{treatment} {value:.3f} of it [{low:.3f}, {high:.3f}]{saved}, gradient {gap:.1e} off")
    return "; ".join(found) + "\n"


if __name__ == "__main__":
    for share in (0, 30, 60):
        sys.stdout.write(compare(share, repeats=int(sys.argv[1]) if len(sys.argv) > 1 else 5))
        sys.stdout.flush()
