"""Rewards of a batch. `reward=python`: the user's own functions, called as by TRL, beside or in place of the rules."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from torch import Tensor

from src.errors import ConfigError
from src.protocol.dialogue import Message, TurnExample
from src.protocol.regions import DecodedCompletion
from src.protocol.types import ParsedResponse
from src.rewards.functions.user_function import RewardError, UserFunction, assistant, conversation, is_finite_number
from src.rewards.tool_call import Reward, RewardFunction, RewardParts, score_parts

log = logging.getLogger(__name__)

_TAKEN = {
    *(part.name for part in fields(RewardParts)),
    *"total reward rules abstained tokens truncated text target prompt example completion gold_calls".split(),
    *"rollout_step advantage finish_reason regions weights entropies rollout_logprobs old_logprobs loss_terms".split(),
}
"""Names of other metrics, and of other fields of rollouts.jsonl."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Responses to be scored: what each answers, its ids [T_i], and the same, read; and how far training is."""

    examples: Sequence[TurnExample]
    token_ids: Sequence[Tensor]
    responses: Sequence[DecodedCompletion]
    rollout_step: int
    progress: float


def score_all(reward: RewardFunction, batch: Batch) -> list[Reward]:
    """Rewards in the order of the responses: from the reward's method `score_all(batch)`, or else one by one.

    Raises:
        RewardError: a reward that is not finite.
    """
    together = getattr(reward, "score_all", None)
    rewards = _one_by_one(reward, batch) if together is None else together(batch)
    for found, example, response in zip(rewards, batch.examples, batch.responses, strict=True):
        if not math.isfinite(found.total):
            raise RewardError(
                f"reward: expected a finite number, found {found.total} for example '{example.source}/{example.id}' "
                f"and the response {response.text[:200]!r}. Mend the class of `reward`."
            )
    return rewards


def _one_by_one(reward: RewardFunction, batch: Batch) -> list[Reward]:
    return [
        reward(one.text, one.parsed, example.target, rollout_step=batch.rollout_step, progress=batch.progress)
        for example, one in zip(batch.examples, batch.responses, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class PartsAndScores(RewardParts):
    """The rules' components, and by name what each function gave; one that abstained has `<name>/abstained` alone."""

    scores: Mapping[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Components and scores by name."""
        return {**RewardParts.metrics(self), **self.scores}


class PythonReward:
    """A weighted sum of functions, and of the rules. A function that abstains counts as if it were not there.

    Where all abstain and there are no rules, the reward is 0, and `abstained` is 1.

    Args:
        functions: by name, `FILE.py:NAME`, `package.module.NAME`, or `{path: one of these, weight: 1.0}`; null: none.
        rules: the rule-based reward. None: its components are logged, and train nothing.
        rules_weight: of its total.

    Attributes:
        names: what `RewardParts.metrics` of its rewards may have besides the rules' components.
        full_marks: whether targets must have full marks from the rules.

    Raises:
        ConfigError: a function that cannot be found, a name that is taken, or a weight that is none.
    """

    def __init__(
        self, functions: Mapping[str, Any], rules: RewardFunction | None = None, rules_weight: float = 1.0
    ) -> None:
        given = {str(name): entry for name, entry in functions.items() if entry is not None}
        if not given:
            raise ConfigError("reward.functions: expected a function, found none. Add NAME: FILE.py:FUNCTION.")
        for name in given:
            if name in _TAKEN or not re.fullmatch(r"\w[\w-]*", name):
                known = "a name of letters, digits, - and _ that no other metric has"
                raise ConfigError(f"reward.functions.{name}: expected {known}. Choose another name.")
        if not is_finite_number(rules_weight):
            raise ConfigError(f"reward.rules_weight: expected a finite number, found {rules_weight!r}.")
        self._functions = [UserFunction.from_config(name, entry) for name, entry in given.items()]
        self._rules, self._rules_weight = rules, rules_weight
        self._runner = asyncio.Runner()  # one loop for all batches, to which clients of the user's may be bound
        weakref.finalize(self, self._runner.close)
        self.full_marks = bool(getattr(rules, "full_marks", False))
        self.names = ["abstained" if rules is None else "rules", *given, *(f"{name}/abstained" for name in given)]

    def __call__(
        self, text: str, parsed: ParsedResponse, target: Message, *, rollout_step: int, progress: float = 0.0
    ) -> Reward:
        """What the rules give to a response, without weight and functions (`RewardFunction`)."""
        if self._rules is None:
            return Reward(0.0, score_parts(parsed, target))
        return self._rules(text, parsed, target, rollout_step=rollout_step, progress=progress)

    def bounds(self, rollout_step: int, progress: float = 0.0) -> tuple[float, float]:
        """The lowest and highest share of the rules in the total; those of the functions are not known."""
        ends = (0.0, 0.0) if self._rules is None else self._rules.bounds(rollout_step, progress)
        low, high = sorted(self._rules_weight * end for end in ends)
        return low, high

    def score_all(self, batch: Batch) -> list[Reward]:
        """See `score_all`. Functions are called in order, async ones together after the others.

        Raises:
            RewardError: a function returned something other than a finite number or None for each response.
        """
        if not batch.examples:
            return []
        known = arguments(batch)
        returned = {one.name: one(known) for one in self._functions if not one.is_async}
        if waiting := [one for one in self._functions if one.is_async]:
            returned |= self._runner.run(_together(waiting, known))
        found = [one.checked(returned[one.name], batch.examples) for one in self._functions]
        columns = zip(*found, strict=True)
        return [self._sum(base, values) for base, values in zip(_one_by_one(self, batch), columns, strict=True)]

    def _sum(self, base: Reward, values: Sequence[float | None]) -> Reward:
        """The total of a response, from what the rules and the functions gave."""
        total = 0.0 if self._rules is None else self._rules_weight * base.total
        silent = float(all(value is None for value in values))
        scores = {"abstained": silent} if self._rules is None else {"rules": base.total}
        for one, value in zip(self._functions, values, strict=True):
            scores[f"{one.name}/abstained"] = float(value is None)
            if value is not None:
                scores[one.name] = value
                total += one.weight * value
        parts = {part.name: getattr(base.parts, part.name) for part in fields(RewardParts)}
        return Reward(total, PartsAndScores(**parts, scores=scores))


async def _together(functions: Sequence[UserFunction], known: Mapping[str, Any]) -> dict[str, Any]:
    """What async functions return, by name."""
    returned = await asyncio.gather(*(one.awaited(known) for one in functions))
    return {one.name: found for one, found in zip(functions, returned, strict=True)}


def arguments(batch: Batch) -> dict[str, Any]:
    """All that functions can ask for, by name: lists with an entry for each completion, and two numbers.

    Columns of the records, None where a record has it not, replace `tools` and `target`, but no other argument.
    """
    own = [
        {"tools": [dict(tool.json) for tool in one.tools], "target": [assistant(one.target.text, one.target.calls)]}
        for one in batch.examples
    ]
    rows = [{**first, **example.columns} for first, example in zip(own, batch.examples, strict=True)]
    columns = {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
    given = {
        "prompts": [conversation(example) for example in batch.examples],
        "completions": [[assistant(one.text, one.parsed.calls or ())] for one in batch.responses],
        "completion_ids": [ids.tolist() for ids in batch.token_ids],
        "rollout_step": batch.rollout_step,
        "progress": batch.progress,
    }
    for key in sorted(columns.keys() & given.keys()):
        _say_hidden(key)
    return columns | given


@cache
def _say_hidden(column: str) -> None:
    log.warning("reward.functions: the records' column '%s' is hidden by the argument of that name. Rename it.", column)
