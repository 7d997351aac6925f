"""Settings of the training modules: the method, and how a step becomes optimizer steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, cast, get_args

from torch import Tensor

from src.algorithm.advantages import Credit, Estimator
from src.algorithm.policy_loss import PolicyLossConfig
from src.algorithm.region_weights import RegionWeighting
from src.config.signatures import resolved
from src.errors import ConfigError, check_fields

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OldLogprobs = Literal["auto", "update", "score", "sampler"]
ZeroAdvantage = Literal["skip", "score", "train"]


@dataclass(frozen=True, slots=True)
class AlgorithmSettings:
    """What makes a policy-gradient method: ResT, GRPO and kin differ here and in the reward only.

    Attributes:
        name: of the method, for tables and plots.
        weighting: token weights by region.
        loss: the clipped loss.
        estimator: of the advantages.
        advantage_delta: δ of Eq. 15.
        credit: what the answers of an episode are credited with: `episode`, its whole reward; `turn`, what came from
            each answer on (`turn_advantages`). Of single answers they are the same.
        regions: what says which region a token is in: `sampled`, the parts of the sampled ids (`protocol.regions`), or
            the path of a function (ids int64 [T], tokenizer=…) -> regions int64 [T], such as the published code's
            tagging of re-tokenised text, `src.wings.published.regions.published_regions`.
        resample_rounds: dynamic sampling: so many times at most, groups whose rewards are all equal are replaced by
            groups of other training prompts; 0: they stay, and teach nothing.
    """

    name: str
    weighting: RegionWeighting
    loss: PolicyLossConfig
    estimator: Estimator = "grpo"
    advantage_delta: float = 1e-6
    credit: Credit = "episode"
    regions: str = "sampled"
    resample_rounds: int = 0

    def __post_init__(self) -> None:
        rules = (
            ("estimator", self.estimator in get_args(Estimator), f"one of {get_args(Estimator)}"),
            ("credit", self.credit in get_args(Credit), f"one of {get_args(Credit)}"),
            ("advantage_delta", self.advantage_delta >= 0, "at least 0"),
            ("resample_rounds", self.resample_rounds >= 0, "at least 0"),
        )
        check_fields("algorithm", self, rules)
        if self.regions != "sampled":
            _resolved_tagger(self.regions)

    def tagger(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[Tensor], Tensor] | None:
        """The function of `regions`, ids [T] -> regions [T]; None for those of the sampled ids."""
        return None if self.regions == "sampled" else partial(_resolved_tagger(self.regions), tokenizer=tokenizer)


def _resolved_tagger(path: str) -> Callable[..., Tensor]:
    """The function of `AlgorithmSettings.regions`.

    Raises:
        ValueError: there is none, or it takes no tokenizer.
    """
    try:
        found = resolved(path)
        problem = "" if "tokenizer" in inspect.signature(found).parameters else "it takes no argument 'tokenizer'"
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        problem = str(error)
    if problem:
        raise ConfigError(
            f"algorithm.regions: expected 'sampled' or the path of a function (ids, tokenizer) -> regions, found "
            f"'{path}': {problem}. The published code's is src.wings.published.regions.published_regions."
        )
    return cast(Callable[..., Tensor], found)


@dataclass(frozen=True, slots=True)
class SupervisedSettings:
    """What makes a supervised method: SFT, TSFT and RSFT differ in the weights of the target's tokens.

    Attributes:
        name: of the method, for tables and plots.
        weighting: token weights by region of the target.
    """

    name: str
    weighting: RegionWeighting


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """How the prompts of a step become optimizer steps.

    Attributes:
        rollout_steps: of the whole run.
        prompts_per_minibatch: prompts of one optimizer step, over all ranks.
        passes: times that each rollout step's groups are gone through.
        max_row_tokens: longest packed row; bounds the memory of a forward.
        gradient_clip: largest gradient norm.
        old_logprobs: where the policy's log-probabilities before the update come from: `update`, for the first
            minibatch from its own forward and for the others from a scoring pass; `score`, that pass for all;
            `sampler`, for the others the sampler's, which saves that pass; `auto`, `sampler` while the sampler's are
            the trainer's (`Sampler.agrees`), `update` otherwise.
        zero_advantage: what the update does with completions of which no token has an advantage, where the loss gives
            them no gradient: `skip`, nothing; `score`, a forward without backward, for metrics; `train`, all that it
            does with the others. The gradient is the same.
        probe_tokens: tokens by which an engine is compared with the policy, at the start, or with weights of its own
            after every update; 0: off.
        probe_mean_tolerance: most that their log-probabilities may differ by on average, in nats; None: by the type
            (`rollout.probe`).
        probe_tolerance: likewise, of any token.
        max_bad_steps: optimizer steps in a row whose loss or gradient is not finite, which end the run; fewer are
            skipped.
        save_bad_steps: minibatches of such steps that are saved in the run folder, on each rank.
    """

    rollout_steps: int
    prompts_per_minibatch: int
    passes: int = 1
    max_row_tokens: int = 16384
    gradient_clip: float = 1.0
    old_logprobs: OldLogprobs = "auto"
    zero_advantage: ZeroAdvantage = "skip"
    probe_tokens: int = 16
    probe_mean_tolerance: float | None = None
    probe_tolerance: float | None = None
    max_bad_steps: int = 3
    save_bad_steps: int = 3

    def __post_init__(self) -> None:
        positive = ("rollout_steps", "prompts_per_minibatch", "passes", "max_row_tokens", "max_bad_steps")
        rules = [(name, getattr(self, name) >= 1, "at least 1") for name in positive]
        rules += [
            ("gradient_clip", self.gradient_clip > 0, "more than 0"),
            ("old_logprobs", self.old_logprobs in get_args(OldLogprobs), f"one of {get_args(OldLogprobs)}"),
            ("zero_advantage", self.zero_advantage in get_args(ZeroAdvantage), f"one of {get_args(ZeroAdvantage)}"),
            ("probe_tokens", self.probe_tokens >= 0, "at least 0"),
            ("save_bad_steps", self.save_bad_steps >= 0, "at least 0"),
        ]
        for name in ("probe_mean_tolerance", "probe_tolerance"):
            value = getattr(self, name)
            rules.append((name, value is None or value > 0, "null or more than 0"))
        check_fields("updates", self, rules)
