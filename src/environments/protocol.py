"""What a world with tools is: something whose calls can be run and whose results can be read.

A call comes from a model and is data: it is looked up by name and executed by the tools' own executors. Whatever is
wrong with it becomes its result, which the model reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from src.errors import Refusal
from src.protocol.dialogue import JsonValue, Message, ToolCall, ToolSpec
from src.protocol.types import ParsedResponse


class LimitError(RuntimeError):
    """A step could not be run within the limits of its world, so it did not happen.

    Args:
        limit: `time_limit` or `memory_limit`.
    """

    def __init__(self, limit: str) -> None:
        super().__init__(limit)
        self.limit = limit


class World(Protocol):
    """Tools and what they act on.

    Attributes:
        tools: what the prompt offers.
        hint: something that a user could ask for.
    """

    tools: tuple[ToolSpec, ...]
    hint: str

    def run(self, calls: Sequence[ToolCall]) -> list[str]:
        """A result for each call of a step, errors included.

        Raises:
            LimitError: the step took too much time or memory.
        """
        ...

    def observations(self, calls: Sequence[ToolCall], results: Sequence[str]) -> tuple[Message, ...]:
        """The results of a step as the model reads them in the paper's format."""
        ...

    def reset(self) -> None:
        """Put the world back to its beginning."""
        ...

    def close(self) -> None:
        """Give back processes."""
        ...


@dataclass(frozen=True, slots=True)
class Task:
    """What an episode is about.

    Attributes:
        id: unique within its environment.
        row: what the environment starts it from, plain JSON.
        tags: what kind of task it is, for metrics by kind.
    """

    id: str
    row: Mapping[str, JsonValue] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EpisodeScore:
    """What an episode earned.

    Attributes:
        total: the reward of the whole episode.
        parts: what it is made of, by name (`state`, `calls`, `answer`), for metrics.
        turns: what each answer that the environment saw earned, in order: progress where it can tell it, else all of
            it at the last. They sum to `total`, unless there was none.
        success: whether the task is done.
    """

    total: float
    parts: Mapping[str, float]
    turns: tuple[float, ...]
    success: bool


class Episode(Protocol):
    """One play of a task, in a world of its own.

    The order is `observe`, then `act` and `observe` until `done`, then `score`, then `close`.

    Attributes:
        tools: on offer, the same to the end.
        done: whether no further answer is wanted.
        counts: how often something went wrong that was answered in words, by name: see `FAULTS`.
    """

    tools: tuple[ToolSpec, ...]
    done: bool
    counts: Mapping[str, int]

    def observe(self) -> tuple[Message, ...]:
        """What is new since the last answer, oldest first.

        At first a user's words, and a system message if there is one; then results of calls (`observation`, one for
        each call, with its name and id), or what the user says next.
        """
        ...

    def act(self, answer: ParsedResponse) -> None:
        """Take an answer of the policy: run its calls, which may be broken in any way, or hear its words."""
        ...

    def score(self) -> EpisodeScore:
        """What it earned. Also of an episode that was stopped before it was done."""
        ...

    def close(self) -> None:
        """Give back processes and connections; more than once does no harm."""
        ...


class Opening(NamedTuple):
    """The tools on offer, and what is said first."""

    tools: tuple[ToolSpec, ...]
    messages: tuple[Message, ...]

    @classmethod
    def of(cls, episode: Episode) -> Opening:
        """Of an episode that was only started; it is closed."""
        messages = episode.observe()
        episode.close()
        return cls(episode.tools, messages)


class Environment(Protocol):
    """Tasks, and worlds to play them in. Holds no open process or connection before the first `start`.

    Attributes:
        name: for logs and metrics.
        parts: names of the parts of its scores; none where it knows no reward, so that nothing can be learnt in it.
        concurrent: how many of its episodes may start, act or end at once, each in a thread; 1 where that waits for
            nothing outside.
    """

    name: str
    parts: tuple[str, ...]
    concurrent: int

    def splits(self) -> tuple[str, ...]:
        """Names of the splits that there are; `train` among them."""
        ...

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split, the same ones every time.

        Raises:
            DataError: a row that no episode can start from.
        """
        ...

    def opening(self, task: Task) -> Opening:
        """What every episode of a task begins with.

        Raises:
            EnvironmentFaultError: see `start`.
        """
        ...

    def start(self, task: Task, seed: int) -> Episode:
        """A new episode in a private world. The same task, seed and answers give the same observations and score.

        Raises:
            EnvironmentFaultError: the world does not start, which is nobody's answer.
        """
        ...

    def close(self) -> None:
        """Give back what all episodes share; more than once does no harm."""
        ...


FAULTS = (
    *("malformed", "unknown_tool", "wrong_arguments"),
    *("tool_error", "timeout", "cut_result", "tool_died"),
)
"""What goes wrong in episodes and is answered in words, in the order in which it may: calls that cannot be read, that
name no tool or not its parameters; tools that raise, take too long, return too much, or end their world."""


class EnvironmentFaultError(Refusal, RuntimeError):
    """The world itself does not work: a server that does not start, a class of the user's that raises in `reset`."""
