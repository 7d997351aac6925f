"""An engine that follows the policy's weights: it gets them, is compared with the trainer, and samples from them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

import torch

from src.algorithm.experience import PromptGroup
from src.data.rendering import RenderedPrompt
from src.models.loading.lora import merged_named_tensors
from src.models.loading.sharding import reshard
from src.models.moe import choices_recorded, share_of_equal_choices
from src.models.policy import Policy
from src.rollout.collect import GroupCollector, ScoredGroup
from src.rollout.engine import RolloutEngine, SamplingParams
from src.rollout.probe import EXACT_TOLERANCE, Gap, check_gap, gap_limits, probe_group, probe_params
from src.rollout.splitting import SplittingEngine
from src.training.ranks import Ranks

log = logging.getLogger(__name__)


class Announce(Protocol):
    """Tells the callbacks of something out of the ordinary that the run survives."""

    def __call__(self, event: str, **values: str | float | None) -> None:
        """`docs/troubleshooting.md` lists the events."""


class Probe(NamedTuple):
    """How an engine with weights of its own is compared with the policy after every update.

    Attributes:
        tokens: greedy tokens of one prompt; 0: the engine is trusted.
        mean: most that their log-probabilities may differ by on average, in nats; None: by `dtype` (`rollout.probe`).
        largest: likewise, of any token.
        dtype: in which the policy's forwards run.
    """

    tokens: int = 16
    mean: float | None = None
    largest: float | None = None
    dtype: torch.dtype = torch.float32


Logprobs = Callable[[PromptGroup], torch.Tensor]
"""The policy's unscaled log-probabilities [N] of a group's tokens."""


class Sampler:
    """Samples and scores completions with the policy's current weights.

    Args:
        engine: samples.
        collector: samples with the engine and scores.
        params: how to sample in training.
        rollout_steps: of the whole run; the reward's schedule depends on the fraction done.
        seed: of sampling.
        ranks: that train together.
        probe: how the engine is checked.
        announce: tells of faults.

    Attributes:
        probed: of the last probe: `engine/gap`, the largest |engine - trainer| log-probability, in nats, and
            `engine/mean_gap`, their mean; and of a mixture, where the engine tells its experts, `engine/equal_experts`,
            the share that the trainer chose too.
        rollout_step: rollout steps that made the engine's weights.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        collector: GroupCollector,
        params: SamplingParams,
        rollout_steps: int,
        seed: int,
        ranks: Ranks,
        probe: Probe,
        announce: Announce,
    ) -> None:
        self.engine, self.collector, self.params, self.seed = engine, collector, params, seed
        self._rollout_steps, self._ranks, self._probe, self._announce = rollout_steps, ranks, probe, announce
        self.probed: dict[str, float] = {}
        self.rollout_step = 0
        self._warned = False
        self._resync: Callable[[], None] = lambda: None

    @property
    def progress(self) -> float:
        """Fraction of the run's rollout steps that is done, in [0, 1]."""
        return self.rollout_step / self._rollout_steps

    @property
    def agrees(self) -> bool:
        """Whether the engine has been seen to give the trainer's log-probabilities, but for rounding in float32.

        One that samples from the policy's own weights was compared at the start, another by the last probe.
        """
        if not self._probe.tokens or self._probe.dtype not in (torch.float32, torch.float64):
            return False
        return not self.engine.copies_weights or self.probed.get("engine/gap", math.inf) <= EXACT_TOLERANCE

    @property
    def longest(self) -> int:
        """Tokens that a prompt's completions may have together."""
        return self.params.n * self.params.max_new_tokens

    def sync(self, policy: Policy, rollout_step: int, prompt: Callable[[], RenderedPrompt], logprobs: Logprobs) -> None:
        """Hand the policy's weights to the engine, and check that it computes with them.

        Args:
            policy: on every rank together.
            rollout_step: rollout steps done, the version of the weights.
            prompt: gives what the probe completes, always the same.
            logprobs: what the policy says of the probe.

        Raises:
            EngineMismatchError: the engine's log-probabilities are not the policy's.
        """
        self._resync = partial(self.sync, policy, rollout_step, prompt, logprobs)
        self.rollout_step = rollout_step
        self._hand_over(policy)
        if self.engine.copies_weights and self._probe.tokens:
            self._check(policy, prompt(), logprobs)

    def _hand_over(self, policy: Policy) -> None:
        reshard(policy)
        self.engine.update_weights(merged_named_tensors(policy.model, self._probe.dtype), self.rollout_step)

    def _check(self, policy: Policy, prompt: RenderedPrompt, logprobs: Logprobs) -> None:
        """See that engine and trainer agree; where they do not, hand the weights over once more and look again."""
        probe = self._probe
        limits = gap_limits(probe.dtype, probe.mean, probe.largest)
        gap = self._gap(policy, prompt, logprobs)
        if not gap.within(limits):
            found = f"log-probabilities differ by {gap.mean:.2e} nats on average and by up to {gap.largest:.2e}"
            log.warning("Rollout step %d: the engine's %s: it gets the weights again.", self.rollout_step, found)
            self._announce("engine_fault", error=found)
            self._hand_over(policy)
            gap = self._gap(policy, prompt, logprobs)
            check_gap(gap, limits, self.rollout_step, probe.dtype)
        if gap.largest > limits.mean and not self._warned:
            self._warned = True
            log.warning(
                "Rollout step %d: the engine's log-probability of a token differs from the trainer's by %.2g nats, by "
                "%.2g on average: rounding (%s), or weights that did not arrive. The run goes on; "
                "engine/gap and engine/mean_gap show all steps. This is said once.",
                self.rollout_step,
                gap.largest,
                gap.mean,
                probe.dtype,
            )

    def _gap(self, policy: Policy, prompt: RenderedPrompt, logprobs: Logprobs) -> Gap:
        """Greedy log-probabilities of one prompt, the engine's against the trainer's; on all ranks the same."""
        ids = prompt.prompt_ids.cpu()
        ((completion,),) = self.engine.generate([ids], probe_params(self.params, self._probe.tokens), [0])
        group = probe_group(ids, completion)
        with nullcontext() if completion.experts is None else choices_recorded(policy.model) as chosen:
            found = logprobs(group)
        gaps = (found - group.rollout_logprobs.to(found.device)).abs().double()
        total, count = self._ranks.sum(torch.stack([gaps.sum(), torch.tensor(len(gaps)).to(gaps)])).tolist()
        gap = Gap(total / count, float(self._ranks.max(gaps.max())))
        self.probed = {"engine/gap": gap.largest, "engine/mean_gap": gap.mean}
        if chosen and completion.experts is not None:
            share = torch.tensor(share_of_equal_choices(chosen, completion.experts))
            self.probed["engine/equal_experts"] = float(self._ranks.min(share))
        return gap

    def sample(self, prompts: Sequence[RenderedPrompt]) -> list[ScoredGroup]:
        """Scored completions of this rank's prompts; every rank calls this equally often.

        An engine that fails gets the weights again, gathered by all ranks, and one more try; then its error propagates.
        """
        collect = partial(self._collect, prompts, self.params)
        if not isinstance(self.engine, SplittingEngine):
            return collect()
        return self._with_one_retry(self.engine, collect)

    def greedy(self, prompts: Sequence[RenderedPrompt]) -> list[ScoredGroup]:
        """One scored greedy completion of each prompt. Ranks may call this differently often."""
        params = replace(self.params, n=1, temperature=0.0, top_p=1.0, top_k=0)
        collect = partial(self._collect, prompts, params)
        if not isinstance(self.engine, SplittingEngine) or self._ranks.size > 1:  # which cannot retry together
            return collect()
        return self._with_one_retry(self.engine, collect)

    def _collect(self, prompts: Sequence[RenderedPrompt], params: SamplingParams) -> list[ScoredGroup]:
        return self.collector.collect(prompts, params, self.seed, self.rollout_step, self.progress)

    def _with_one_retry(self, engine: SplittingEngine, collect: Callable[[], list[ScoredGroup]]) -> list[ScoredGroup]:
        before = engine.max_completions
        groups, fault = _tried(engine, collect)
        shrunk = 0 if engine.max_completions == before else engine.max_completions or 0
        failed, shrunk = self._ranks.max(torch.tensor([int(fault is not None), shrunk])).tolist()
        if shrunk:
            self._announce("out_of_memory", where="rollout", max_completions=shrunk)
        if failed:
            fault = fault or "on another rank"
            log.warning("Rollout step %d: the engine failed (%s): it gets the weights again.", self.rollout_step, fault)
            self._announce("engine_fault", error=fault)
            self._resync()
        return collect() if groups is None else groups


def _tried(
    engine: SplittingEngine, collect: Callable[[], list[ScoredGroup]]
) -> tuple[list[ScoredGroup] | None, str | None]:
    """The groups, or how the engine failed; what fails in scoring propagates."""
    try:
        return collect(), None
    except (RuntimeError, OSError) as error:
        if error is not engine.fault:
            raise
        engine.fault = None  # its traceback holds tensors
        return None, f"{type(error).__name__}: {error}"
