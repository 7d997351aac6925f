"""What a world with tools is: something whose calls can be run and whose results can be read.

A call comes from a model and is data: it is looked up by name and executed by the tools' own executors. Whatever is
wrong with it becomes its result, which the model reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from src.protocol.dialogue import ToolCall, ToolSpec


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

    def observation(self, calls: Sequence[ToolCall], results: Sequence[str]) -> str:
        """The results of a step as the model reads them."""
        ...

    def reset(self) -> None:
        """Put the world back to its beginning."""
        ...

    def close(self) -> None:
        """Give back processes."""
        ...
