"""Episodes of one request: the policy calls tools until it answers without a call. And the rows they begin from."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from src.data.sources.messages import read_messages
from src.data.sources.reading import read_records
from src.environments.answers import Result, ToolRunner
from src.environments.protocol import EpisodeScore, Task
from src.errors import ConfigError, advice
from src.protocol.dialogue import DataError, JsonValue, Message, ToolCall, ToolSpec
from src.protocol.types import ParsedResponse
from src.rewards.functions.user_function import RewardError, chat_messages, find, is_finite_number


class Connection(Protocol):
    """A private world of an episode.

    Attributes:
        lost: `timeout` or `tool_died` where it is gone for good, so that the episode is over; else empty.
        hidden: texts that no error shows.
    """

    lost: str
    hidden: list[str]

    def run(self, calls: Sequence[ToolCall]) -> list[Result]:
        """A result for each call, in order. Raises on nothing that a tool does."""
        ...

    def reward(self, history: Sequence[Message]) -> float | None:
        """What the episode has earned so far, after all that was said; None: the world has no reward of its own.

        Raises:
            EnvironmentFaultError: it cannot be told.
        """
        ...

    def close(self) -> None:
        """Give back processes; more than once does no harm."""
        ...


class ToolEpisode:
    """See `Episode`.

    Args:
        tools: on offer.
        opening: the messages that the episode begins with.
        connection: runs the calls; closed with the episode.
        result_limit: characters of an observation.
        turn_rewards: ask for the reward after every answer, which earns the difference; else the last earns it all.
        success_at: the reward from which the task is done.
    """

    def __init__(
        self,
        tools: Sequence[ToolSpec],
        opening: Sequence[Message],
        connection: Connection,
        *,
        result_limit: int,
        turn_rewards: bool,
        success_at: float,
    ) -> None:
        self.tools = tuple(tools)
        self.done = False
        self._runner = ToolRunner(tools, connection.run, result_limit, connection.hidden)
        self.counts: Mapping[str, int] = self._runner.counts
        self._history = list(opening)
        self._new = tuple(opening)
        self._connection = connection
        self._turn_rewards = turn_rewards
        self._success_at = success_at
        self._earned: list[float | None] = []
        self._score: EpisodeScore | None = None

    def observe(self) -> tuple[Message, ...]:
        """See `Episode`."""
        new, self._new = self._new, ()
        return new

    def act(self, answer: ParsedResponse) -> None:
        """See `Episode`. An answer without calls ends it."""
        said = Message("assistant", (answer.response or "").strip(), (answer.thought or "").strip(), answer.calls or ())
        self._new = self._runner.observations(answer)
        self._history += [said, *self._new]
        self.done = not self._new or bool(self._connection.lost)
        self._earned.append(self._reward() if self._turn_rewards else None)

    def score(self) -> EpisodeScore:
        """See `Episode`. One that was stopped before the first answer is asked for its reward too."""
        if self._score is None:
            given = list(self._earned)
            if not given or not self._turn_rewards:
                given[-1:] = [self._reward()]
            totals = [0.0]
            for value in given:  # None says nothing new
                totals.append(totals[-1] if value is None else value)
            has_reward = any(value is not None for value in given)
            turns = tuple(after - before for before, after in pairwise(totals))[: len(self._earned)]
            parts = {"environment": totals[-1]} if has_reward else {}
            self._score = EpisodeScore(totals[-1], parts, turns, has_reward and totals[-1] >= self._success_at)
        return self._score

    def _reward(self) -> float | None:
        before, value = self._connection.lost, self._connection.reward(self._history)
        if before != (lost := self._connection.lost):
            self._runner.counts[lost] += 1
        return value

    def close(self) -> None:
        """See `Episode`."""
        self._connection.close()


class EpisodeReward:
    """A function of the user that says what an episode earned. It is asked by one episode at a time.

    Args:
        path: `FILE.py:NAME` or `package.module:NAME`. The function is given a row and the messages of an episode, as
            OpenAI has them, and returns a number, or None for no reward.

    Raises:
        ConfigError: there is no such function, or it takes other arguments.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._function = find("environment.reward", path)
        try:
            inspect.signature(self._function).bind({}, [])
        except TypeError as error:
            raise ConfigError(
                f"environment.reward: expected a function of a row and an episode's messages, found {path}: {error}."
            ) from error
        self._lock = threading.Lock()  # it may not be made for threads

    def __call__(self, row: Mapping[str, JsonValue], history: Sequence[Message]) -> float | None:
        """What the episode of a row earned.

        Args:
            row: as it was read.
            history: all that was said.

        Raises:
            RewardError: the function returned no finite number.
        """
        try:
            with self._lock:
                value = self._function(dict(row), chat_messages(history))
        except Exception as error:
            error.add_note(f"Raised by environment.reward ({self._path}).")
            raise
        if value is None or isinstance(value, bool) or is_finite_number(value):
            return None if value is None else float(value)
        found = f"found {value!r:.200}. Mend {self._path}."
        raise RewardError(f"environment.reward: expected a finite number or None, {found}")


def shown_variables(names: Sequence[str]) -> dict[str, str]:
    """The values of variables of the environment that tools are to see.

    Raises:
        ConfigError: one is not set.
    """
    for name in names:
        if name not in os.environ:
            raise ConfigError(
                f"environment.variables: '{name}' is not set in the environment. Set it, or drop it here."
            )
    return {name: os.environ[name] for name in names}


def row_files(rows: str | Mapping[str, str]) -> dict[str, str]:
    """The file of rows of each split.

    Args:
        rows: a file or folder for `train`, or one for each split.

    Raises:
        ConfigError: there is none for `train`, or one is not there.
    """
    files = {"train": rows} if isinstance(rows, str) else {str(split): str(path) for split, path in rows.items()}
    if "train" not in files:
        raise ConfigError(f"environment.rows: expected a file for train, found {', '.join(files) or 'none'}.")
    for split, path in files.items():
        if not Path(path).expanduser().exists():
            raise ConfigError(f"environment.rows.{split}: no file or folder '{path}' in {Path.cwd()}.")
    return files


def read_tasks(files: Mapping[str, str], split: str, *, prompts: bool) -> list[Task]:
    """The tasks of a split, a row each; a list under `tags` says of what kind they are.

    Args:
        files: of each split.
        split: one of them.
        prompts: every row must have a `prompt`.

    Raises:
        ConfigError: there is no such split.
        DataError: a row that cannot be read, or whose prompt is neither text nor messages.
    """
    if split not in files:
        raise ConfigError(f"environment.rows: no split '{split}'. {advice(split, files)}")
    tasks = []
    for record in read_records(files[split]):
        if isinstance(record, DataError):
            raise record
        row = dict(record.value)
        if prompts or row.get("prompt") is not None:
            opening(row, record.where)
        tags = row.get("tags")
        tasks.append(Task(record.id, row, tuple(map(str, tags)) if isinstance(tags, list) else ()))
    if not tasks:
        raise ConfigError(f"environment.rows.{split}: expected at least one row, found none in '{files[split]}'.")
    return tasks


def opening(row: Mapping[str, JsonValue], where: str, added: str = "") -> list[Message]:
    """The messages of a row's prompt.

    Args:
        row: with a `prompt`: text, or messages of which the last is the user's.
        where: its place, for errors.
        added: appended to the last message, as TRL does with what `reset` returns; alone, where there is no prompt.

    Raises:
        DataError: it is neither, or there is nothing in it.
    """
    prompt = row.get("prompt")
    if prompt is None or isinstance(prompt, str):
        prompt = [{"role": "user", "content": (prompt or "") + added}] if prompt or added else []
        added = ""
    if not isinstance(prompt, list):
        raise DataError(where, "prompt", "text or messages", prompt)
    messages = read_messages(prompt, where, "prompt")
    if not messages or messages[-1].role != "user":
        raise DataError(where, "prompt", "text, or messages that end with the user's", prompt)
    return [*messages[:-1], Message("user", messages[-1].text + added)]
