"""Multi-turn episodes side by side: one batch of prompts a step for all that are still going."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from src.protocol.dialogue import ChatPrompt
from src.wings.evaluation.benchmark import Answer, Generate


class Episode(Protocol):
    """A dialogue between a model and an environment."""

    def prompt(self) -> ChatPrompt:
        """What the model sees next."""
        ...

    def take(self, answer: Answer) -> bool:
        """Go on with the model's answer; whether the episode is over."""
        ...


E = TypeVar("E", bound=Episode)


def play(episodes: Iterable[E], generate: Generate, *, concurrent: int) -> Iterator[E]:
    """Play episodes to their ends; each is yielded when it is over, and the next one takes its place.

    Args:
        episodes: made when there is room for them.
        generate: asked once a step, for all episodes that are going.
        concurrent: most episodes at once.
    """
    waiting = iter(episodes)
    going: list[E] = []
    while True:
        going += [episode for _, episode in zip(range(concurrent - len(going)), waiting, strict=False)]
        if not going:
            return
        answers = dict(generate([episode.prompt() for episode in going]))
        unfinished = []
        for index, episode in enumerate(going):
            if episode.take(answers[index]):
                yield episode
            else:
                unfinished.append(episode)
        going = unfinished
