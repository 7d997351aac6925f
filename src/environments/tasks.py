"""The tasks of an environment as a corpus: prompts without targets."""

from __future__ import annotations

from src.environments.protocol import Environment
from src.protocol.dialogue import Message, TurnExample


class TaskSource:
    """A `Source` of the tasks of an environment, whose splits it has.

    Args:
        environment: asked once how each task begins.

    Attributes:
        has_targets: no: there is nothing to imitate, and nothing to check.
    """

    has_targets = False

    def __init__(self, environment: Environment) -> None:
        self._environment, self.name = environment, environment.name

    def splits(self) -> tuple[str, ...]:
        """The environment's."""
        return self._environment.splits()

    def load(self, split: str) -> list[TurnExample]:
        """The tasks of a split: what is on offer and what is said first; the target is empty.

        Raises:
            DataError: a row that no episode can start from.
            EnvironmentFaultError: a world does not start.
        """
        examples = []
        for task in self._environment.tasks(split):
            opening = self._environment.opening(task)
            examples.append(
                TurnExample(
                    tools=opening.tools,
                    history=opening.messages,
                    target=Message("assistant"),
                    source=self.name,
                    id=task.id,
                    tags=task.tags,
                    columns=task.row,
                )
            )
        self._environment.close()
        return examples
