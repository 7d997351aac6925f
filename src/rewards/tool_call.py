"""The rule-based reward of a response (Eq. 10-14).

Where paper and published code differ: a target without calls is scored by Eq. 13 (`no_call: eq13`: 1 if no call is
predicted, else 0; `published`: no correctness reward at all), tool names overlap as multisets, as in the published
code (`names: set` is the paper's letter), and values are compared as JSON (`matching.json_equal`). The format score
does not look at the white space between fields, which the parser reads as format; text outside of the fields fails it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, get_args

from src.errors import ConfigError
from src.protocol.dialogue import Message, ToolCall
from src.protocol.matching import is_exact_match, match_calls, overlap
from src.protocol.types import ParsedResponse
from src.rewards.scaling import RewardRamps, RewardRanges, Scaling, ScoreRange, constant, eq14, scheduled

NoCallRule = Literal["eq13", "published"]
NameOverlap = Literal["multiset", "set"]

_FIELDS = {
    (True, True): ("think", "tool_call", "response"),
    (True, False): ("think", "tool_call"),
    (False, True): ("think", "response"),
    (False, False): ("think",),
}
_NATIVE_FIELDS = {
    (True, True): ("response", "tool_call"),
    (True, False): ("tool_call",),
    (False, True): ("response",),
    (False, False): (),
}


@dataclass(frozen=True, slots=True)
class AccuracySums:
    """Numerator and denominator of Eq. 13.

    Attributes:
        name: r_name in [0, 1].
        parameter_names: r_para in [0, calls].
        values: r_value in [0, gold_values].
        calls: |G|, gold calls.
        gold_values: Σ|v(G_i)|, gold parameters in all.
    """

    name: float
    parameter_names: float
    values: float
    calls: int
    gold_values: int

    @classmethod
    def full(cls, gold: Sequence[ToolCall]) -> AccuracySums:
        """What an exact match has."""
        values = sum([len(call.parameters) for call in gold])
        return cls(1.0, float(len(gold)), float(values), len(gold), values)

    @property
    def score(self) -> float:
        """S_acc in [0, 1]."""
        return (self.name + self.parameter_names + self.values) / (1 + self.calls + self.gold_values)


@dataclass(frozen=True, slots=True)
class RewardParts:
    """The components of a reward, each in [0, 1], to be logged by themselves.

    Attributes:
        format: S_fmt, 0 or 1.
        name: r_name.
        parameter_names: r_para by gold call.
        parameter_values: r_value by gold value; as `parameter_names` where the gold calls have no parameters.
        correctness: S_acc. For a target without calls the three above equal it.
        exact_match: 1 if the target's calls are all there and no others.
        sums: the raw sums of Eq. 13; None for a target without calls.
    """

    format: float
    name: float
    parameter_names: float
    parameter_values: float
    correctness: float
    exact_match: float
    sums: AccuracySums | None = None

    @classmethod
    def build(cls, format: float, sums: AccuracySums, exact_match: bool) -> RewardParts:
        """The parts of a response to a target with calls."""
        names = sums.parameter_names / sums.calls
        values = sums.values / sums.gold_values if sums.gold_values else names
        return cls(format, sums.name, names, values, sums.score, float(exact_match), sums)

    def metrics(self) -> dict[str, float]:
        """The components by name."""
        names = ("format", "name", "parameter_names", "parameter_values", "correctness", "exact_match")
        return {name: getattr(self, name) for name in names}


class Parts(Protocol):
    """What a reward is made of."""

    @property
    def exact_match(self) -> float:
        """1 if all is as it should be."""
        ...

    def metrics(self) -> dict[str, float]:
        """All of it by name."""
        ...


@dataclass(frozen=True, slots=True)
class Reward:
    """A response's reward and what it is made of: `RewardParts` where rules gave it."""

    total: float
    parts: Parts


class RewardFunction(Protocol):
    """What `reward` in a config instantiates.

    One that gives every target's own text format 1 and correctness 1 says so with the attribute `full_marks = True`:
    targets that do not get them are then bad records. One that reads the tags of one format names it in
    `output_format`.
    """

    def __call__(
        self, text: str, parsed: ParsedResponse, target: Message, *, rollout_step: int, progress: float = 0.0
    ) -> Reward:
        """Score a response.

        Args:
            text: the whole response, the template's prefix included.
            parsed: the same response, parsed.
            target: the assistant step to predict.
            rollout_step: rollout steps done so far.
            progress: ν in [0, 1], fraction of training done.
        """
        ...

    def bounds(self, rollout_step: int, progress: float = 0.0) -> tuple[float, float]:
        """The lowest and highest total at this moment."""
        ...


def expected_fields(target: Message, *, native: bool = False) -> tuple[str, ...]:
    """The fields that a response to `target` must have, in order.

    The paper's format always has a think; in a model's own, which lets it choose, it is not among these.
    """
    return (_NATIVE_FIELDS if native else _FIELDS)[bool(target.calls), bool(target.text)]


def format_score(parsed: ParsedResponse, target: Message) -> float:
    """S_fmt (Eq. 10): 1 if the response has the target's fields, once each, closed, in order, and nothing else.

    In a model's own format a thought may come first, and calls must be such that its server's parser reads them all.
    """
    fields = parsed.fields[parsed.native and parsed.fields[:1] == ("think",) :]
    whole = all(parsed.closed) and not parsed.stray
    return float(fields == expected_fields(target, native=parsed.native) and whole)


def accuracy_sums(
    predicted: Sequence[ToolCall], gold: Sequence[ToolCall], names: NameOverlap = "multiset"
) -> AccuracySums:
    """r_name, r_para and r_value (Eq. 11-12) of predicted calls against gold calls, of which there is at least one.

    >>> gold = [ToolCall("sky", {"city": "Oslo", "day": 2})]
    >>> accuracy_sums([ToolCall("sky", {"city": "Oslo", "hour": 2})], gold)
    AccuracySums(name=1.0, parameter_names=0.3333333333333333, values=1.0, calls=1, gold_values=2)
    """
    collection = set if names == "set" else list
    matches = match_calls(predicted, gold)
    return AccuracySums(
        name=overlap(collection(c.name for c in gold), collection(c.name for c in predicted)),
        parameter_names=sum(match.parameter_names for match in matches),
        values=float(sum(match.values for match in matches)),
        calls=len(gold),
        gold_values=sum(len(call.parameters) for call in gold),
    )


def score_parts(parsed: ParsedResponse, target: Message, names: NameOverlap = "multiset") -> RewardParts:
    """All components of a response (Eq. 10-13). Calls that do not parse score 0."""
    score, exact = format_score(parsed, target), is_exact_match(parsed, target)
    if target.calls:
        sums = AccuracySums.full(target.calls) if exact else accuracy_sums(parsed.calls or (), target.calls, names)
        return RewardParts.build(score, sums, exact)
    silent = float("tool_call" not in parsed.fields)
    return RewardParts(score, silent, silent, silent, silent, float(exact))


@dataclass(frozen=True, slots=True)
class ToolCallReward:
    """R = correctness on its range + format on its range; see `scaling` for the ranges.

    Attributes:
        scaling: `scheduled`, `eq14` or `constant`.
        no_call: what a target without calls scores for correctness: `eq13` or `published` (nothing).
        names: r_name over tool names as `multiset` or `set`.
        beta_accuracy: β_a of Eq. 14, a factor on the correctness range.
        beta_format: β_f of Eq. 14, a factor on the format range.
        correctness_range: [low, high] under `constant` and `eq14`.
        format_range: the same for the format score.
        ramps: `{end of a range: [start, end, steps]}` under `scheduled`; what is not given is as published.

    Raises:
        ValueError: a setting that is not among these, or an empty range.
    """

    scaling: Scaling = "scheduled"
    no_call: NoCallRule = "eq13"
    names: NameOverlap = "multiset"
    beta_accuracy: float = 1.0
    beta_format: float = 1.0
    correctness_range: Sequence[float] = (-3.0, 3.0)
    format_range: Sequence[float] = (0.0, 1.0)
    ramps: Mapping[str, Sequence[float]] = field(default_factory=dict)
    full_marks: ClassVar[bool] = True
    _ramps: RewardRamps = field(init=False, repr=False)
    _known: dict[tuple[int, float], RewardRanges] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for key, options in (("scaling", Scaling), ("no_call", NoCallRule), ("names", NameOverlap)):
            if getattr(self, key) not in get_args(options):
                raise ConfigError(f"reward.{key}: expected one of {get_args(options)}, found {getattr(self, key)!r}.")
        for key in ("correctness_range", "format_range"):
            value = getattr(self, key)
            if len(value) != 2 or value[0] >= value[1]:
                raise ConfigError(f"reward.{key}: expected [low, high] with low < high, found {list(value)}.")
        for key in ("beta_accuracy", "beta_format"):
            if getattr(self, key) < 0:
                raise ConfigError(f"reward.{key}: expected a factor of at least 0, found {getattr(self, key)}.")
        object.__setattr__(self, "_ramps", RewardRamps.from_config(self.ramps))

    def __call__(
        self, text: str, parsed: ParsedResponse, target: Message, *, rollout_step: int, progress: float = 0.0
    ) -> Reward:
        """Score a response (`RewardFunction`); `text` is not looked at."""
        parts = score_parts(parsed, target, self.names)
        ranges = self.ranges(rollout_step, progress)
        counts = bool(target.calls) or self.no_call == "eq13"
        return Reward(
            ranges.format.at(parts.format) + (ranges.correctness.at(parts.correctness) if counts else 0.0), parts
        )

    def ranges(self, rollout_step: int, progress: float = 0.0) -> RewardRanges:
        """What the scores are worth at this moment."""
        moment = (rollout_step, progress)
        found = self._known.get(moment)
        if found is None:
            found = self._ranges(rollout_step, progress)
            self._known.clear()  # all responses of a rollout step are scored at one moment
            self._known[moment] = found
        return found

    def _ranges(self, rollout_step: int, progress: float) -> RewardRanges:
        if self.scaling == "scheduled":
            base = scheduled(self._ramps, rollout_step)
        else:
            base = constant(RewardRanges(ScoreRange(*self.format_range), ScoreRange(*self.correctness_range)))
        weighted = base.weighted(self.beta_format, self.beta_accuracy)
        return eq14(weighted, progress) if self.scaling == "eq14" else weighted

    def bounds(self, rollout_step: int, progress: float = 0.0) -> tuple[float, float]:
        """The lowest and highest total at this moment, over all kinds of targets."""
        ranges = self.ranges(rollout_step, progress)
        low, high = ranges.correctness.low, ranges.correctness.high
        if self.no_call == "published":
            low, high = min(low, 0.0), max(high, 0.0)
        return ranges.format.low + low, ranges.format.high + high
