"""The world of an episode, in which a person takes the user's part: calls run, and nobody keeps a score."""

from __future__ import annotations

from collections.abc import Sequence

from src.environments.protocol import Environment, Episode
from src.environments.tasks import chosen_split
from src.errors import ConfigError
from src.protocol.dialogue import Message, ToolCall
from src.protocol.types import ParsedResponse

_OVER = "Error: the calls went beyond a limit of the tools, which ended the episode. They have no result."


class EpisodeWorld:
    """See `World`. The episode is told of calls alone, never of words: it would take them for its end.

    Args:
        environment: is the world's own, and closed with it.
        split: of the task; None: see `chosen_split`.
        index: of the task in its split.

    Attributes:
        opening: the messages that the task begins with, up to what its user says last, which is the hint.

    Raises:
        ConfigError: no such task.
        EnvironmentFaultError: its world does not start.
    """

    def __init__(self, environment: Environment, split: str | None = None, index: int = 0) -> None:
        split = chosen_split(environment, split, "task.split")
        tasks = environment.tasks(split)
        if not 0 <= index < len(tasks):
            raise ConfigError(
                f"task.index: expected 0 to {len(tasks) - 1}, the tasks of the split '{split}', found {index}."
            )
        self._environment, self._task = environment, tasks[index]
        self._start()

    def _start(self) -> None:
        try:
            self._episode: Episode = self._environment.start(self._task, 0)
        except BaseException:
            self._environment.close()
            raise
        self.tools = self._episode.tools
        *before, asked = self._episode.observe()
        self.opening: tuple[Message, ...] = tuple(before)
        self.hint = asked.text

    def run(self, calls: Sequence[ToolCall]) -> list[str]:
        """See `World`. A limit that ends the episode is a result too."""
        called = ParsedResponse(("tool_call",), (True,), None, tuple(calls), None, (), 0)
        self._episode.act(called)
        results = [message.text for message in self._episode.observe()]
        return results if len(results) == len(calls) else [_OVER] * len(calls)

    def observations(self, calls: Sequence[ToolCall], results: Sequence[str]) -> tuple[Message, ...]:
        """One for each call, as in episodes."""
        return tuple(
            Message("observation", result, name=call.name) for call, result in zip(calls, results, strict=True)
        )

    def reset(self) -> None:
        """A new episode of the same task."""
        self._episode.close()
        self._start()

    def close(self) -> None:
        """See `World`."""
        self._episode.close()
        self._environment.close()
