"""An episode of `rollouts.jsonl` read back, turn by turn: what was observed, the answer, what it earned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from src.protocol.dialogue import ToolCall


@dataclass(frozen=True, slots=True)
class ObservedMessage:
    """A message that the policy has read, from outside.

    Attributes:
        role: `system`, `user` or `observation`.
        name: of the tool whose result it is, as the policy called it; else empty.
        text: all of it.
    """

    role: str
    name: str
    text: str

    @property
    def speaker(self) -> str:
        """Who says it.

        >>> ObservedMessage("observation", "sky", "rain").speaker, ObservedMessage("user", "", "Hi").speaker
        ('result of sky', 'user')
        """
        if self.role != "observation":
            return self.role
        return f"result of {self.name}" if self.name else "result"


@dataclass(frozen=True, slots=True)
class LoggedTurn:
    """An answer of an episode.

    Attributes:
        observed: messages since the answer before.
        text: the whole answer, with what the chat template wrote of it.
        calls: those that could be read.
        start: its first token among the completion's.
        stop: behind its last one.
        earned: by this answer.
        advantage: of each of its tokens.
    """

    observed: tuple[ObservedMessage, ...]
    text: str
    calls: tuple[ToolCall, ...]
    start: int
    stop: int
    earned: float
    advantage: float


@dataclass(frozen=True, slots=True)
class LoggedEpisode:
    """An episode as it was logged.

    Attributes:
        ending: why it is over, see `rollout.history.Ending`.
        rewrites: how often its history was written anew.
        faults: how often something went wrong that was answered in words, by name; those that happened.
        turns: in order.
    """

    ending: str
    rewrites: int
    faults: Mapping[str, int]
    turns: tuple[LoggedTurn, ...]


def logged_episode(record: Mapping[str, Any], size: int) -> LoggedEpisode:
    """An episode from its record, as `callbacks.rollout_log.episode_record` makes it.

    Args:
        record: of the episode.
        size: tokens of the completion, which are those of the turns.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is no such record.
    """
    turns, stop = [], 0
    for turn in record["turns"]:
        start, stop = stop, stop + int(turn["tokens"])
        observed = tuple(
            ObservedMessage(*(_text(seen[key], key) for key in ("role", "name", "text"))) for seen in turn["observed"]
        )
        calls = tuple(ToolCall(_text(call["name"], "name"), dict(call["arguments"].items())) for call in turn["calls"])
        numbers = float(turn["earned"]), float(turn["advantage"])
        turns.append(LoggedTurn(observed, _text(turn["text"], "text"), calls, start, stop, *numbers))
    if stop != size:
        raise ValueError(f"turns of {stop} tokens in an episode of {size}")
    faults = {name: int(count) for name, count in record["faults"].items()}
    return LoggedEpisode(_text(record["ending"], "ending"), int(record["rewrites"]), faults, tuple(turns))


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} as {key} of an episode")
    return value
