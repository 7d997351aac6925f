"""A search: how (`hydra.sweeper`, checked as the rest of the config is) and over what (sweeps in Hydra's syntax)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString, RangeSweep, Transformer
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from src.config.checks import check_nodes
from src.errors import ConfigError, check_fields
from src.runs.metric_names import EXACT_MATCH

SECTION = "hydra.sweeper"
FREE = ("n_trials", "parallel", "max_failures")
"""Settings that may change when a sweep goes on."""
Parameters = dict[str, Any]
"""Config key to value, of one trial."""

_SYNTAX = "interval(0.1, 0.4), tag(log, interval(1e-5, 1e-3)), choice(a, b) or range(1, 9)"
_ABSENT = object()
_WORDS = ("null", "true", "false", "inf", "nan")
"""Texts that Hydra would not read as such."""


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """How to search.

    Attributes:
        sampler: makes Optuna's sampler of a seed.
        pruner: says from the values on the way whether a trial ends early; None: never.
        n_trials: finished or pruned trials of the whole sweep, over all its starts.
        parallel: trials at once.
        watched: metric of rollout steps by which trials are compared on the way; the last validation decides.
        window: rollout steps of its trailing mean.
        seed: of the sampler; that of trainings is the config's own `seed`, the same for all trials.
        max_failures: runs that may end with an error before the sweep does.
        params: config keys to what they may be, in the syntax of a Hydra multirun; see `read_space`.
    """

    sampler: Callable[..., BaseSampler]
    pruner: BasePruner | None = None
    n_trials: int = 12
    parallel: int = 1
    watched: str = EXACT_MATCH
    window: int = 5
    seed: int = 1
    max_failures: int = 3
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rules = (
            ("n_trials", self.n_trials >= 1, "at least 1"),
            ("parallel", self.parallel >= 1, "at least 1"),
            ("window", self.window >= 1, "at least 1"),
            ("max_failures", self.max_failures >= 0, "at least 0"),
        )
        check_fields(SECTION, self, rules)


def read_settings(sweeper: DictConfig) -> SweepSettings:
    """The settings of a composed `hydra.sweeper`.

    Raises:
        ConfigError: an unknown key, or a value that cannot be.
    """
    target = f"{SweepSettings.__module__}.{SweepSettings.__name__}"
    check_nodes(OmegaConf.merge(sweeper, {"_target_": target}), SECTION)
    plain = OmegaConf.to_container(sweeper, resolve=True)
    assert isinstance(plain, dict)
    values = {str(key): value for key, value in plain.items() if key not in ("_target_", "_recursive_")}
    try:
        return SweepSettings(**instantiate(values, _convert_="all"))
    except (HydraException, ValueError) as error:
        raise ConfigError(str(error).strip()) from error


@dataclass(frozen=True, slots=True)
class Space:
    """What trials differ in, and what they share.

    Attributes:
        distributions: Optuna's, by config key.
        texts: the same as they were written.
        given: overrides that all trials get.
    """

    distributions: Mapping[str, BaseDistribution]
    texts: Mapping[str, str]
    given: Sequence[str]


def read_space(params: Mapping[str, Any], arguments: Sequence[str], loader: ConfigLoader | None = None) -> Space:
    """The space of a config's `params` and a command line, which wins.

    A sweep on the command line is searched too, or instead; a plain override goes to all trials, and what it sets is
    not searched.

    Args:
        params: config key to text; null leaves a key out.
        arguments: overrides, without Hydra's own.
        loader: knows the groups that a `glob` chooses from.

    >>> space = read_space({"a.b": "interval(0, 1)", "c": "1,2"}, ["c=3", "d=range(1,4)", "seed=7"])
    >>> space.distributions["d"], dict(space.texts), space.given
    (IntDistribution(high=3, log=False, low=1, step=1), {'a.b': 'interval(0, 1)', 'd': 'range(1,4)'}, ['c=3', 'seed=7'])

    Raises:
        ConfigError: an entry that Hydra cannot read, or that holds one value only; or no entry at all.
    """
    parser = OverridesParser.create(config_loader=loader)
    texts = {str(key): str(text) for key, text in params.items() if text is not None}
    places = {key: f"{SECTION}.params.{key}" for key in texts}
    given = []
    for override in parser.parse_overrides(list(arguments)):
        key = override.key_or_group
        if override.is_sweep_override():
            texts[key], places[key] = override.get_value_string(), key
        else:
            texts.pop(key, None)
            given.append(str(override.input_line))
    found = {}
    for key, text in texts.items():
        try:
            found[key] = _distribution(parser.parse_override(f"{key}={text}"))
        except (HydraException, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"{places[key]}: expected e.g. {_SYNTAX}, found {text!r}: {reason}") from error
    if not found:
        raise ConfigError(f"{SECTION}.params: expected at least one key with e.g. {_SYNTAX}, found none.")
    return Space(found, texts, given)


def _distribution(override: Override) -> BaseDistribution:
    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        log = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=log)
        return FloatDistribution(float(value.start), float(value.end), log=log)
    if isinstance(value, RangeSweep):
        numbers = value.range()
        if isinstance(numbers, range) and numbers:
            return IntDistribution(numbers[0], numbers[-1], step=numbers.step)
        raise ValueError("a range of integers is expected; other numbers take interval(low, high)")
    if override.is_choice_sweep():
        return CategoricalDistribution([_plain(choice) for choice in override.sweep_iterator()])
    raise ValueError("one value is nothing to search")


def _plain(choice: object) -> bool | int | float | str | None:
    value = choice.text if isinstance(choice, QuotedString) else choice
    if isinstance(value, None | bool | int | float | str):
        return value
    raise ValueError("choices are texts, numbers, true, false or null")


def defaults(config: DictConfig, space: Space) -> Parameters:
    """What a composed config has for the keys of a space: the parameters of the first trial.

    Args:
        config: with Hydra's own node, which knows what was chosen of each group.
        space: what is searched.

    Raises:
        ConfigError: a key that is not there, or a value outside of the space.
    """
    found: Parameters = {}
    groups = config.hydra.runtime.choices
    for key, distribution in space.distributions.items():
        value = groups[key] if key in groups else OmegaConf.select(config, key, default=_ABSENT)
        if value is _ABSENT:
            raise ConfigError(f"{key}: expected a key of the config to search, found none of that name.")
        if not _within(value, distribution):
            raise ConfigError(
                f"{key}: expected values to search that hold the config's own, {value!r}, which the first trial takes; "
                f"found {_shown(distribution)}. Add it to '{space.texts[key]}'."
            )
        found[key] = float(value) if isinstance(distribution, FloatDistribution) else value
    return found


def followers(config: DictConfig, keys: Sequence[str]) -> dict[str, str]:
    """Config keys that take the value of a searched one.

    >>> followers(OmegaConf.create({"loss": {"low": "${loss.high}", "high": 0.2}}), ["loss.high"])
    {'loss.low': 'loss.high'}
    """
    found: dict[str, str] = {}

    def visit(node: Any, path: str) -> None:
        for name, value in node.items():
            if isinstance(value, dict):
                visit(value, f"{path}{name}.")
            elif isinstance(value, str) and value.startswith("${") and value[2:-1] in keys:
                found[f"{path}{name}"] = value[2:-1]

    visit(OmegaConf.to_container(config, resolve=False), "")
    return found


def as_override(key: str, value: Any) -> str:
    r"""A value on a command line of Hydra's.

    >>> print(as_override("algorithm", "grpo"), as_override("data.path", "ann's"), as_override("ckpt_path", None))
    algorithm=grpo data.path='ann\'s' ckpt_path=null
    """
    if isinstance(value, str) and (value in _WORDS or not re.fullmatch(r"[A-Za-z][\w.-]*", value)):
        value = QuotedString(text=value, quote=Quote.single)
    return f"{key}={Transformer.str(value)}"


def _within(value: object, distribution: BaseDistribution) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if isinstance(distribution, IntDistribution):
        return isinstance(value, int) and value in range(distribution.low, distribution.high + 1, distribution.step)
    assert isinstance(distribution, FloatDistribution)
    return isinstance(value, int | float) and distribution.low <= value <= distribution.high


def _shown(distribution: BaseDistribution) -> str:
    """The values of a distribution, for a message.

    >>> _shown(FloatDistribution(0.1, 0.4)), _shown(CategoricalDistribution(["a", "b"]))
    ('0.1 to 0.4', "one of 'a', 'b'")
    """
    if isinstance(distribution, FloatDistribution | IntDistribution):
        return f"{distribution.low} to {distribution.high}"
    assert isinstance(distribution, CategoricalDistribution)
    return f"one of {', '.join(map(repr, distribution.choices))}"
