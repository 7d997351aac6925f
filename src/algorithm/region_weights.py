"""Token weights by region: initial factors (Eq. 9), curriculum (Eq. 16-17), clip and normalisation (Eq. 18).

Departures from the paper, each the published code's too unless said: the curriculum runs on the rollout step rather
than on a fraction of training (`progress`), the name factor stays at its initial value rather than at w_max, and
parameters and reasoning have caps below w_max. RESPONSE and OTHER, which the paper does not name, follow REASONING
and FORMAT; the published code gives both 0 (`response: 0`, `other: 0`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from src.protocol.types import Region

Initialiser = Literal["fixed", "inverse_entropy", "inverse_impurity", "measured_variance"]
_TINY = 1e-100  # below any second moment; keeps reciprocals finite
Progress = Literal["step", "fraction"]
Normalisation = Literal["sequence", "positive", "global", "none"]


@dataclass(frozen=True, slots=True)
class RegionFactors:
    """Weight of each region before normalisation.

    A factor of 0 switches its region off for good, clip and curriculum included.

    Attributes:
        reasoning: inside think.
        tool_name: the value of a call's name.
        tool_parameters: a call's parameters object.
        format: tags, the rest of a call, white space between parts, the end-of-turn token.
        response: None follows reasoning; 0 is the published code.
        other: None follows format; 0 is the published code.
    """

    reasoning: float = 1.0
    tool_name: float = 1.0
    tool_parameters: float = 1.0
    format: float = 1.0
    response: float | None = None
    other: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 0:
                raise ValueError(f"algorithm.weighting.factors.{field.name}: expected at least 0, found {value}.")

    def table(self) -> Tensor:
        """float64 [6], the factor of each `Region` by its number."""
        values = [0.0] * len(Region)
        for region in Region:
            value = getattr(self, region.label)
            if value is None:
                value = self.reasoning if region is Region.RESPONSE else self.format
            values[region] = value
        return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class RegionWeighting:
    """How token weights are made. The defaults weigh all tokens alike, which is GRPO.

    Attributes:
        factors: initial factors (Tables F.1 and F.2); with an Eq. 9 initialiser the name factor sets the scale, and a
            region without a measured entropy keeps its factor.
        initialiser: `fixed` takes `factors` as they are, `inverse_entropy` and `inverse_impurity` are Eq. 9's two
            forms, `measured_variance` is Eq. 7 with each region's second moment of the last layer's gradient, measured
            anew at every rollout step (`variance_factors`).
        smoothing: in [0, 1), how much of the past `measured_variance` keeps at each rollout step; 0 keeps none.
        alpha_format: α_f, lowers the format factor per unit of progress.
        alpha_parameters: α_p, raises the parameters factor.
        alpha_reasoning: α_t, raises the reasoning factor. All three 0: no curriculum.
        progress: what ν is, the rollout step or the fraction of training done. Tables F.1 and F.2 only make sense
            with steps.
        w_min: lower bound of every factor that is not 0.
        w_max: upper bound of every factor.
        max_parameters: upper bound of the parameters factor as it grows.
        max_reasoning: upper bound of the reasoning factor as it grows.
        no_gradient: labels of regions whose tokens get weight 0 whatever their factor; regions that follow them keep
            theirs. `reasoning` is the paper's "no gradients for CoT".
        normalisation: mean 1 over each `sequence` (Eq. 18), over the `positive` weights of each sequence (published
            code), over all tokens at once (`global`, Algorithm 2), or `none`, for a loss that divides by the sum of
            weights.
        delta: δ of Eq. 18, > 0, added to the mean.
    """

    factors: RegionFactors = RegionFactors()
    initialiser: Initialiser = "fixed"
    smoothing: float = 0.9
    alpha_format: float = 0.0
    alpha_parameters: float = 0.0
    alpha_reasoning: float = 0.0
    progress: Progress = "step"
    w_min: float = 0.001
    w_max: float = 8.0
    max_parameters: float = 1.2
    max_reasoning: float = 1.0
    no_gradient: tuple[str, ...] = ()
    normalisation: Normalisation = "sequence"
    delta: float = 1e-8

    def __post_init__(self) -> None:
        choices = (("initialiser", Initialiser), ("progress", Progress), ("normalisation", Normalisation))
        for name, choice in choices:
            if getattr(self, name) not in get_args(choice):
                raise ValueError(
                    f"algorithm.weighting.{name}: expected one of {get_args(choice)}, found '{getattr(self, name)}'."
                )
        labels = [region.label for region in Region]
        if unknown := sorted(set(self.no_gradient) - set(labels)):
            raise ValueError(f"algorithm.weighting.no_gradient: expected some of {labels}, found {unknown}.")
        if not 0 < self.w_min <= self.w_max:
            raise ValueError(
                f"algorithm.weighting: expected 0 < w_min <= w_max, found w_min={self.w_min} and w_max={self.w_max}."
            )
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"algorithm.weighting.smoothing: expected at least 0 and below 1, found {self.smoothing}.")
        if self.delta <= 0:
            raise ValueError(f"algorithm.weighting.delta: expected more than 0, found {self.delta}.")
        for name in ("alpha_format", "alpha_parameters", "alpha_reasoning"):
            if getattr(self, name) < 0:
                raise ValueError(f"algorithm.weighting.{name}: expected at least 0, found {getattr(self, name)}.")

    @property
    def needs_moments(self) -> bool:
        """Whether factors are made of second moments that scoring has to measure."""
        return self.initialiser == "measured_variance"

    def initial_factors(self, entropies: Mapping[Region, float] | None = None) -> RegionFactors:
        """Factors at progress 0: the configured ones, or Eq. 9's from the mean entropy (nats) of each region.

        `measured_variance` has no initial factors of its own: before its first measurement the configured ones hold.

        Raises:
            ValueError: an Eq. 9 initialiser without entropies.
        """
        if self.initialiser in ("fixed", "measured_variance"):
            return self.factors
        if entropies is None:
            raise ValueError(
                f"algorithm.weighting.initialiser '{self.initialiser}' needs the mean entropy of each region, measured "
                "on the first rollouts; found none. Measure them, or set algorithm.weighting.initialiser: fixed."
            )
        return entropy_factors(self, entropies)

    def factors_at(self, initial: RegionFactors, progress: float) -> RegionFactors:
        """Factors after the curriculum (Eq. 16-17) at ν = `progress`, clipped to [w_min, w_max].

        format falls by α_f ν to w_min; parameters and reasoning rise by α_p ν and α_t ν to their caps; name stays.
        With Table F.1's factors and steps at ν = 100: format 0.95 - 0.3 = 0.65, parameters 0.8 + 0.3 = 1.1, reasoning
        0.016 + 0.006 = 0.022, name 1.2.
        """
        reasoning = self._clip(
            min(self.max_reasoning, initial.reasoning + self.alpha_reasoning * progress), initial.reasoning
        )
        form = self._clip(initial.format - self.alpha_format * progress, initial.format)
        factors = RegionFactors(
            reasoning=reasoning,
            tool_name=self._clip(initial.tool_name, initial.tool_name),
            tool_parameters=self._clip(
                min(self.max_parameters, initial.tool_parameters + self.alpha_parameters * progress),
                initial.tool_parameters,
            ),
            format=form,
            response=reasoning if initial.response is None else self._clip(initial.response, initial.response),
            other=form if initial.other is None else self._clip(initial.other, initial.other),
        )
        return replace(factors, **dict.fromkeys(self.no_gradient, 0.0))

    def _clip(self, value: float, initial: float) -> float:
        """`value` within [w_min, w_max]; 0 where the region is switched off."""
        return 0.0 if initial == 0 else max(self.w_min, min(self.w_max, value))


def entropy_factors(weighting: RegionWeighting, entropies: Mapping[Region, float]) -> RegionFactors:
    """Eq. 9: factors ∝ 1/H or 1/(1 - e^-H) of a region's mean entropy H, the largest being the name factor.

    Clipping comes first, so that one region of almost no entropy does not press all others to w_min. A region that
    was not measured, or is switched off, keeps its configured factor.

    Example, `inverse_entropy`, name factor 1.2, H = 0.1 (name), 0.25 (format), 0.5 (parameters), 1 (reasoning): 1/H is
    10, 4, 2, 1, clipped at 8: 8, 4, 2, 1; scaled by 1.2 / 8: 1.2, 0.6, 0.3, 0.15.
    """
    raw: dict[Region, float] = {}
    for region in (Region.REASONING, Region.TOOL_NAME, Region.TOOL_PARAMETERS, Region.FORMAT):
        if region not in entropies or getattr(weighting.factors, region.label) == 0:
            continue
        entropy = torch.tensor(entropies[region], dtype=torch.float64)
        size = entropy if weighting.initialiser == "inverse_entropy" else -torch.expm1(-entropy)
        raw[region] = float((1 / size.clamp_min(0)).clamp(weighting.w_min, weighting.w_max))
    if not raw:
        return weighting.factors
    scale = weighting.factors.tool_name / max(raw.values())
    return replace(weighting.factors, **{region.label: value * scale for region, value in raw.items()})


def region_means(sums: Tensor) -> Tensor:
    """Mean by region [6] of a quantity summed by region, sums [2, 6] of values and of tokens; 0 without tokens."""
    return sums[0] / sums[1].clamp_min(_TINY)


def variance_factors(weighting: RegionWeighting, sums: Tensor) -> RegionFactors:
    """Eq. 7 with one β for each region, its mean second moment: factors ∝ 1 / β.

    A factor is first how much smaller the region's β is than that of the average token, and that ratio is clipped to
    [w_min, w_max]: with w_max = 8 no region counts more than 8 times the average token, however certain it is. The
    scale of β, which depends on the model's width and on the temperature, thus does not matter. Then all are scaled, so
    that the largest is the name factor, or a cap of the curriculum below it, which would cut it again. RESPONSE and
    OTHER are measured like the rest. A region without tokens so far, or switched off, keeps its configured factor.

    Example, name factor 1, β = 0.5 (reasoning, 60 tokens), 0.1 (format, 30), 0.01 (name, 10): mean 0.331, ratios 0.662,
    3.31 and 33.1, clipped at 8; scaled by 1 / 8: 0.083, 0.414, 1.

    Args:
        weighting: with the clip and the configured factors.
        sums: float64 [2, 6], second moments and tokens by region; smoothed sums are fine. Expected moments have the
            mean of the measured ones and much less noise where tokens are nearly certain.
    """
    mean = float(sums[0].sum() / sums[1].sum().clamp_min(_TINY))
    ratios: dict[str, float] = {}
    for region, beta in zip(Region, region_means(sums).tolist(), strict=True):
        if sums[1, region] > 0 and getattr(weighting.factors, region.label) != 0:
            ratio = max(mean, _TINY) / max(beta, _TINY)
            ratios[region.label] = max(weighting.w_min, min(weighting.w_max, ratio))
    if not ratios:
        return weighting.factors
    caps = (weighting.factors.tool_name, weighting.max_parameters, weighting.max_reasoning)
    scale = min(cap for cap in caps if cap > 0) / max(ratios.values())
    return replace(weighting.factors, **{label: ratio * scale for label, ratio in ratios.items()})


def token_weights(
    factors: RegionFactors,
    regions: Tensor,
    lengths: Tensor,
    *,
    normalisation: Normalisation = "sequence",
    delta: float = 1e-8,
) -> Tensor:
    """Weight of each token: its region's factor, divided by the mean factor plus delta (Eq. 18).

    Example, factors format 1 and reasoning 0.25, lengths [2, 3], regions [R F | R R F]: factors .25 1 | .25 .25 1,
    means .625 and .5, weights 0.4 1.6 | 0.5 0.5 2. With reasoning 0 `sequence` gives 0 2 | 0 0 3, and `positive`,
    which leaves the zeros out of the mean, 0 1 | 0 0 1.

    A sequence whose factors are all 0 (published mode, nothing but a response) keeps weights 0: it counts as a
    sequence and has no gradient.

    Args:
        factors: from `RegionWeighting.factors_at`.
        regions: int64 [N], `Region` of each token.
        lengths: int64 [G], tokens of each sequence, summing to N.
        normalisation: `sequence`, `positive` (over the tokens of each sequence whose factor is not 0), `global` (over
            all N), or `none`.
        delta: added to the mean.

    Returns:
        float32 [N].
    """
    raw = factors.table().to(regions.device).index_select(0, regions)
    if normalisation == "none":
        return raw.float()
    if normalisation == "global":
        return (raw / (raw.mean() + delta)).float()
    numbers = torch.arange(len(lengths), device=lengths.device)
    sequence = torch.repeat_interleave(numbers, lengths, output_size=len(regions))
    totals = raw.new_zeros(len(lengths)).index_add_(0, sequence, raw)
    sizes = lengths
    if normalisation == "positive":
        sizes = lengths.new_zeros(len(lengths)).index_add_(0, sequence, (raw > 0).to(lengths)).clamp_min(1)
    return (raw / (totals / sizes + delta).index_select(0, sequence)).float()


def batch_token_weights(
    factors: RegionFactors,
    regions: Sequence[Tensor],
    lengths: Sequence[Tensor],
    *,
    normalisation: Normalisation = "sequence",
    delta: float = 1e-8,
) -> list[Tensor]:
    """`token_weights` of many groups in one pass: of each what it would have by itself.

    Args:
        factors: from `RegionWeighting.factors_at`.
        regions: int64 [N_i] of each group.
        lengths: int64 [G_i] of each group, summing to N_i.
        normalisation: see `token_weights`; `global` is over the tokens of a group.
        delta: added to the mean.

    Returns:
        float32 [N_i] of each group.
    """
    if not regions or normalisation == "global":
        pairs = zip(regions, lengths, strict=True)
        return [token_weights(factors, *pair, normalisation=normalisation, delta=delta) for pair in pairs]
    whole = torch.cat(list(regions)), torch.cat(list(lengths))
    weights = token_weights(factors, *whole, normalisation=normalisation, delta=delta)
    return list(weights.split([len(group) for group in regions]))


def sum_by_region(values: Tensor, regions: Tensor) -> Tensor:
    """Sum over each region, float64 [6]: values [1, 2, 4], regions [0, 3, 0] -> [5, 0, 0, 2, 0, 0]."""
    sums = torch.zeros(len(Region), dtype=torch.float64, device=values.device)
    return sums.index_add_(0, regions, values.detach().double())
