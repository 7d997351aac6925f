"""The clipped policy loss (Eq. 19) and its variants, additive over any split of a minibatch.

Every term is divided by counts of the whole minibatch, given as `LossCounts`. The losses of its rows, on whichever
rank and however packed, therefore sum to the loss of the minibatch. Data-parallel wrappers average gradients over
ranks: multiply by the number of ranks there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from src.algorithm.experience import PromptGroup
from src.algorithm.loss_metrics import LossMetrics
from src.errors import check_fields

Aggregation = Literal["sequence", "published", "token_sum_constant"]
Surrogate = Literal["clipped", "gspo", "cispo"]
Denominator = Literal["all", "with_advantage"]

_MAX_LOG_RATIO = 20.0  # exp stays finite; far outside any clip range


@dataclass(frozen=True, slots=True)
class PolicyLossConfig:
    """Which loss.

    Attributes:
        aggregation: `sequence` is Eq. 19, the mean over sequences of sum_t w_t / T_i; `published` divides the whole
            sum by the sum of the minibatch's weights; `token_sum_constant` divides each sequence by `max_length`
            instead of T_i (Dr.GRPO).
        surrogate: `clipped` is Eq. 19's; `gspo` (2507.18071) puts the sequence's ratio in place of the token's; `cispo`
            (2506.13585) makes the clipped ratio a constant factor of log p, so that clipped tokens keep a gradient.
        clip_low: the ratio is clipped from below at 1 - clip_low.
        clip_high: and from above at 1 + clip_high.
        dual_clip: bounds the loss at a negative advantage A to dual_clip * |A|, however likely a token has become;
            None: no bound, as in Eq. 19. The published code's framework has 3.
        kl_coef: β of the penalty KL(policy || reference) by the k3 estimator.
        entropy_coef: of the bonus for entropy.
        importance_cap: truncates the correction old / rollout that makes up for a sampler whose log-probabilities
            differ from the trainer's; None: no correction.
        max_length: the constant of `token_sum_constant`, usually sampling.max_new_tokens.
        denominator: the completions that `num_sequences` and `weight_total` of `LossCounts` count: `all` of the
            minibatch, as in Eq. 19, or those with an advantage. With the second the step is as long as if those
            without one had never been sampled.
    """

    aggregation: Aggregation = "sequence"
    surrogate: Surrogate = "clipped"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    importance_cap: float | None = None
    max_length: int | None = None
    denominator: Denominator = "all"

    def __post_init__(self) -> None:
        for key, kind in (("aggregation", Aggregation), ("surrogate", Surrogate), ("denominator", Denominator)):
            if getattr(self, key) not in get_args(kind):
                raise ValueError(
                    f"algorithm.loss.{key}: expected one of {get_args(kind)}, found '{getattr(self, key)}'."
                )
        if (self.aggregation == "token_sum_constant") != (self.max_length is not None):
            raise ValueError(
                "algorithm.loss.aggregation 'token_sum_constant' and algorithm.loss.max_length go together: expected "
                f"both or neither, found aggregation '{self.aggregation}' and max_length {self.max_length}."
            )
        rules = (
            ("clip_low", 0 <= self.clip_low <= 1, "in [0, 1]"),
            ("clip_high", self.clip_high >= 0, "at least 0"),
            ("dual_clip", self.dual_clip is None or self.dual_clip > 1, "null or more than 1"),
            ("dual_clip", self.dual_clip is None or self.surrogate != "cispo", "null with surrogate 'cispo'"),
            ("kl_coef", self.kl_coef >= 0, "at least 0"),
            ("importance_cap", self.importance_cap is None or self.importance_cap > 0, "null or more than 0"),
            ("max_length", self.max_length is None or self.max_length > 0, "null or more than 0"),
            (
                "denominator",
                self.denominator == "all" or not self.needs_all_tokens,
                "all with kl_coef or entropy_coef, which are means over all tokens",
            ),
        )
        check_fields("algorithm.loss", self, rules)

    @property
    def needs_all_tokens(self) -> bool:
        """Whether a token of advantage 0 has a gradient. Where none has, the update may leave such completions out."""
        return self.kl_coef > 0 or self.entropy_coef != 0


class LossCounts(NamedTuple):
    """Totals of a whole minibatch, over all its rows and ranks. Sum those of the ranks to get them."""

    num_sequences: float
    num_tokens: float
    weight_total: float

    @classmethod
    def of(cls, groups: Sequence[PromptGroup], denominator: Denominator = "all") -> LossCounts:
        """Totals of these groups; tokens are always all, see `PolicyLossConfig.denominator` for the others."""
        every = denominator == "all"
        counted = groups if every else [group.chosen(group.with_advantage) for group in groups]
        return cls(
            float(sum(len(group.lengths) for group in counted)),
            float(sum(len(group.token_ids) for group in groups)),
            float(sum(group.weights.double().sum().item() for group in counted)),
        )


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What the loss of one row needs beside the policy's scores: N sampled tokens of S sequences, in the row's order.

    Attributes:
        old_logprobs: float32 [N], the trainer's before this rollout step's updates; None where those are the scores
            themselves, because no update has come between: every ratio is 1 then.
        advantages: float32 [N].
        weights: float32 [N].
        lengths: int64 [S], summing to N.
        rollout_logprobs: float32 [N], the sampler's.
        ref_logprobs: float32 [N], the frozen start's; None without a penalty.
    """

    old_logprobs: Tensor | None
    advantages: Tensor
    weights: Tensor
    lengths: Tensor
    rollout_logprobs: Tensor
    ref_logprobs: Tensor | None = None

    @classmethod
    def of(cls, groups: Sequence[PromptGroup], *, first: bool = False) -> LossInputs:
        """Inputs of a row of groups.

        Args:
            groups: of the row.
            first: no update has come since they were sampled, so that they need no old_logprobs.

        Raises:
            ValueError: a group without old_logprobs, or only some groups with ref_logprobs.
        """
        old = [group.old_logprobs for group in groups if group.old_logprobs is not None]
        ref = [group.ref_logprobs for group in groups if group.ref_logprobs is not None]
        if (len(old) < len(groups) and not first) or len(ref) not in (0, len(groups)):
            raise ValueError(
                f"policy_loss: expected old_logprobs on all {len(groups)} groups and ref_logprobs on all or none, "
                f"found {len(old)} and {len(ref)}. Score the groups before the first update."
            )
        return cls(
            old_logprobs=None if first else torch.cat(old),
            advantages=torch.cat([group.token_advantages for group in groups]),
            weights=torch.cat([group.weights for group in groups]),
            lengths=torch.cat([group.lengths for group in groups]),
            rollout_logprobs=torch.cat([group.rollout_logprobs for group in groups]),
            ref_logprobs=torch.cat(ref) if ref else None,
        )


class PolicyLoss:
    """A row's share of the minibatch's loss (Eq. 19 and its variants), as a sum over its tokens.

    With r = exp(logprob - old), A the token's advantage, w the token weight, T its sequence's length, and totals of
    the minibatch:

        sequence            -1/num_sequences sum_i sum_t w/T_i min(r A, clip(r) A)
        published           -1/weight_total  sum_i sum_t w     min(r A, clip(r) A)
        token_sum_constant  -1/num_sequences sum_i sum_t w/max_length min(r A, clip(r) A)

    With `gspo`, r is exp(mean of logprob - old over the sequence) in value, and in its gradient by a token's logprob
    (GSPO-token, Eq. 14 there). With `cispo`, clip(r) A logprob stands for the minimum, and clip(r) carries no gradient.
    The KL penalty and the entropy bonus are means of the same kind without token weights (`published`: over tokens).
    Log-ratios are held within ±20, so that a token that became impossible gives a finite loss.

    Args:
        inputs: of the row.
        config: which loss.
        counts: totals of the minibatch.

    Attributes:
        whole: a term depends on all tokens of its sequence, so the row's are to be given at once.

    Raises:
        ValueError: a penalty without ref_logprobs.
    """

    def __init__(self, inputs: LossInputs, config: PolicyLossConfig, counts: LossCounts) -> None:
        if config.kl_coef > 0 and inputs.ref_logprobs is None:
            raise ValueError(
                f"algorithm.loss.kl_coef is {config.kl_coef}, but the groups carry no ref_logprobs; score them first."
            )
        self._config = config
        self._old, self._rollout, self._ref = inputs.old_logprobs, inputs.rollout_logprobs, inputs.ref_logprobs
        self._advantages, self._lengths = inputs.advantages, inputs.lengths
        self.whole = config.surrogate == "gspo" and self._old is not None
        if config.aggregation == "published":
            self._scale = torch.full_like(inputs.weights, 1 / max(counts.num_tokens, 1.0))
            self._weights = inputs.weights / (counts.weight_total or 1.0)
        else:
            sizes = inputs.lengths if config.max_length is None else torch.full_like(inputs.lengths, config.max_length)
            self._scale = (1 / (sizes * max(counts.num_sequences, 1.0))).repeat_interleave(inputs.lengths)
            self._weights = inputs.weights * self._scale

    def __call__(self, logprobs: Tensor, entropies: Tensor, part: slice = slice(None)) -> Tensor:
        """What some of the tokens add to the loss, a scalar with gradient; see `terms` for the arguments."""
        return self.terms(logprobs, entropies, part).sum()

    def terms(self, logprobs: Tensor, entropies: Tensor, part: slice = slice(None)) -> Tensor:
        """What each of some tokens adds to the loss, float32 [n] with gradient.

        Args:
            logprobs: float32 [n], of the policy in training.
            entropies: float32 [n].
            part: which of the row's tokens they are.
        """
        config, advantages = self._config, self._advantages[part]
        old = self._old_logprobs(logprobs, part)
        ratio = self._ratio(logprobs, old)
        clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
        if config.surrogate == "cispo":
            surrogate = clipped.detach() * advantages * logprobs
        else:
            surrogate = torch.minimum(ratio * advantages, clipped * advantages)
        if config.dual_clip is not None:
            surrogate = torch.where(advantages < 0, torch.maximum(surrogate, config.dual_clip * advantages), surrogate)
        if config.importance_cap is not None:
            correction = _bounded(old - self._rollout[part]).exp().clamp(max=config.importance_cap)
            surrogate = surrogate * correction.detach()
        terms = -(self._weights[part] * surrogate)
        if config.kl_coef > 0 and self._ref is not None:
            terms = terms + config.kl_coef * (self._scale[part] * _k3(self._ref[part] - logprobs))
        if config.entropy_coef != 0:
            terms = terms - config.entropy_coef * (self._scale[part] * entropies)
        return terms

    @torch.no_grad()
    def metrics(self, logprobs: Tensor, entropies: Tensor) -> LossMetrics:
        """Sums and maxima over the row's tokens; see `LossMetrics`.

        A token counts as clipped where the clip is in force: its ratio is out of range on the side that its advantage
        pushes to.

        Args:
            logprobs: float32 [N].
            entropies: float32 [N].
        """
        old = self._old_logprobs(logprobs, slice(None))
        ratio = self._ratio(logprobs, old)
        gap = (old - self._rollout).abs()
        per_token = {
            "entropy": entropies,
            "clip_fraction_low": (ratio < 1 - self._config.clip_low) & (self._advantages < 0),
            "clip_fraction_high": (ratio > 1 + self._config.clip_high) & (self._advantages > 0),
            "approx_kl": _k3(logprobs - old),
            "ratio": ratio,
            "sampler_gap": gap,
        }
        if self._ref is not None:
            per_token["ref_kl"] = _k3(self._ref - logprobs)
        sums = {key: value.double().sum() for key, value in per_token.items()}
        sums["tokens"] = torch.tensor(float(len(ratio)), dtype=torch.float64, device=ratio.device)
        return LossMetrics(sums, {"ratio_max": ratio.max(), "sampler_gap_max": gap.max()})

    def _ratio(self, logprobs: Tensor, old: Tensor) -> Tensor:
        """What the surrogate clips."""
        log_ratio = _bounded(logprobs - old)
        if self.whole:
            means = torch.segment_reduce(log_ratio.detach(), "mean", lengths=self._lengths)
            log_ratio = log_ratio - log_ratio.detach() + means.repeat_interleave(self._lengths)
        return log_ratio.exp()

    def _old_logprobs(self, logprobs: Tensor, part: slice) -> Tensor:
        return logprobs.detach() if self._old is None else self._old[part]


def _bounded(log_ratio: Tensor) -> Tensor:
    """Log-ratio within ±20."""
    return log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def _k3(log_ratio: Tensor) -> Tensor:
    """k3 estimate of KL(p || q) at a sample of p, from log q - log p: exp(x) - x - 1 >= 0."""
    x = _bounded(log_ratio)
    return x.exp() - x - 1
