"""Right and careless plays of generated tasks, as messages and as a corpus to warm-start a policy with."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

from src.data.sources.base import generated_split, generator_splits
from src.environments.generated.environment import GeneratedEnvironment, GeneratedEpisode
from src.environments.generated.scenario import Scenario, Turn, calls_of
from src.environments.protocol import Task
from src.protocol.dialogue import Dialogue, Message, TurnExample, split_turns
from src.protocol.types import ParsedResponse


@dataclass(frozen=True, slots=True)
class Habits:
    """How often an imperfect demonstrator goes wrong, as real models do; each is a probability.

    Attributes:
        stop_after_first: several calls are needed, only the first is made.
        repeat_call: a call is made twice.
        invent_id: an id is made up instead of looked up.
        give_up: a call failed, nothing else is tried.
        call_anyway: a tool is called though none fits, or without the look that decides between two.
        invent_value: a value is missing, it is made up.
    """

    stop_after_first: float = 0.35
    repeat_call: float = 0.15
    invent_id: float = 0.35
    give_up: float = 0.65
    call_anyway: float = 0.65
    invent_value: float = 0.65


EXPERT = Habits(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def parsed(step: Message) -> ParsedResponse:
    """An assistant step as an episode takes it."""
    found = {"think": step.thought, "response": step.text, "tool_call": step.calls}
    names = tuple(name for name, content in found.items() if content)
    return ParsedResponse(
        names, (True,) * len(names), step.thought or None, step.calls or None, step.text or None, (), 0, native=True
    )


def gold(environment: GeneratedEnvironment, task: Task, seed: int = 0) -> tuple[Message, ...]:
    """The messages of the right play of a task."""
    scenario = environment.scenario(task)
    return tuple(play(scenario, environment.start(task, seed), EXPERT, random.Random(0)))


def play(scenario: Scenario, episode: GeneratedEpisode, habits: Habits, rng: random.Random) -> Iterator[Message]:
    """Play an episode to its end with some habits.

    Args:
        scenario: of the episode.
        episode: not begun.
        habits: of the demonstrator.
        rng: decides where it goes wrong.

    Yields:
        All messages, observed and answered.
    """
    yield from episode.observe()
    done = Message("assistant", scenario.done, "done.")
    for turn in scenario.turns:
        for step in _steps(turn, scenario, done, habits, rng):
            yield step
            episode.act(parsed(step))
            seen = episode.observe()
            yield from seen
            if any(message.text.startswith('{"error"') for message in seen) and rng.random() < habits.give_up:
                yield done
                episode.act(parsed(done))
                yield from episode.observe()
                break


def _steps(turn: Turn, scenario: Scenario, done: Message, habits: Habits, rng: random.Random) -> Sequence[Message]:
    """The right steps of a turn, or steps with one fault; `done` ends those that have not seen enough to answer."""
    steps, calls = turn.steps, calls_of(turn.steps)
    if turn.slip and rng.random() < (habits.invent_value if turn.wanted else habits.call_anyway):
        return *turn.slip, done
    first = scenario.tools[calls[0].name] if calls else None
    if len(calls) > 1 and first and first.role == "find" and rng.random() < habits.invent_id:
        key, id = first.kind.labels["id"], f"{rng.choice('bcdfghjkmnpqrtvwxz')}{rng.randrange(10, 100)}"
        return *(_with(step, key, id) for step in steps[1:-1]), done
    if len(calls) > 1 and rng.random() < habits.stop_after_first:
        thought = steps[0].thought.removesuffix(".").split("; ")[0] + "."
        return replace(steps[0], thought=thought, calls=tuple(calls[:1])), done
    if calls and rng.random() < habits.repeat_call:
        index = rng.randrange(len(steps) - 1)
        return *steps[: index + 1], *steps[index:]
    return steps


def _with(step: Message, key: str, id: str) -> Message:
    """The step with another id in its calls."""
    calls = [replace(call, parameters={**call.parameters, key: id}) for call in step.calls if key in call.parameters]
    return replace(step, calls=tuple(calls))


class GeneratedSource:
    """The plays of an environment's tasks as a corpus, a step an example. See `Source`.

    Args:
        num_train: examples of `train`.
        num_val: examples of `val` and of `val_unseen`.
        seed: of the generator: tasks are those of an environment with the same seed.
        kinds: share of each kind of task; default equal shares.
        habits: train plays are those of an imperfect demonstrator with these; None is an expert. Validation plays are
            always the expert's.
        invented: share of words that are made of random letters.

    Raises:
        ConfigError: a count below 1, or an unknown kind.
    """

    name = GeneratedEnvironment.name

    def __init__(
        self,
        num_train: int = 4000,
        num_val: int = 300,
        seed: int = 0,
        kinds: Mapping[str, float] | None = None,
        habits: Habits | None = None,
        invented: float = 0.35,
    ) -> None:
        self._counts = generator_splits(num_train, num_val)
        self._environment = GeneratedEnvironment(num_train, num_val, seed, kinds, invented)
        self._seed, self._habits = seed, habits

    def splits(self) -> tuple[str, ...]:
        """Names of the splits, `train` first."""
        return tuple(self._counts)

    def load(self, split: str) -> list[TurnExample]:
        """Generate one split. The tag of a step is the kind of its task.

        Raises:
            ValueError: unknown split.
        """
        return generated_split(self._counts, split, self.stream)

    def stream(self, split: str) -> Iterator[TurnExample]:
        """The endless sequence of which `load` returns the beginning."""
        for dialogue, kind in self.dialogues(split):
            for example in split_turns(dialogue):
                yield replace(example, tags=(kind,))

    def dialogues(self, split: str) -> Iterator[tuple[Dialogue, str]]:
        """The whole plays behind `stream`, endless, each with the kind of its task."""
        habits = self._habits if self._habits and split == "train" else EXPERT
        for index in count():
            task = self._environment.task(split, index)
            scenario = self._environment.scenario(task)
            episode = GeneratedEpisode(scenario)
            messages = play(scenario, episode, habits, random.Random(f"{self._seed}/{task.id}/habits"))
            yield Dialogue(episode.tools, tuple(messages), self.name, task.id), task.tags[0]
