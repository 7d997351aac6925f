"""The tasks of an environment as a corpus: prompts without targets."""

from __future__ import annotations

from src.environments.protocol import Environment, Task
from src.errors import ConfigError, advice
from src.protocol.dialogue import Message, TurnExample


def task_example(environment: Environment, task: Task) -> TurnExample:
    """How a task begins: what is on offer and what is said first; the target is empty.

    Raises:
        EnvironmentFaultError: its world does not start.
    """
    opening = environment.opening(task)
    return TurnExample(
        tools=opening.tools,
        history=opening.messages,
        target=Message("assistant"),
        source=environment.name,
        id=task.id,
        tags=task.tags,
        columns=task.row,
    )


def chosen_split(environment: Environment, wanted: str | None, key: str) -> str:
    """The split of a name; None: the first that is not trained on, or `train` where there is no other.

    Args:
        environment: of the tasks.
        wanted: its name.
        key: where the name stands in the config.

    Raises:
        ConfigError: there is no such split.
    """
    splits = environment.splits()
    if wanted is None:
        return next((split for split in splits if split != "train"), "train")
    if wanted not in splits:
        raise ConfigError(f"{key}: {environment.name} has no split '{wanted}'. {advice(wanted, splits)}")
    return wanted


def check_reward(environment: Environment, key: str) -> None:
    """Refuse an environment that knows no reward, where one is needed.

    Args:
        environment: to be trained in, or evaluated in.
        key: that asks for it.

    Raises:
        ConfigError: it scores nothing.
    """
    if not environment.parts:
        raise ConfigError(
            f"{key}: expected an environment with a reward, found none in {environment.name}. Set environment.reward "
            "to a function of yours, or give the class of environment.path a method get_reward."
        )


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
        """The tasks of a split; see `task_example`.

        Raises:
            DataError: a row that no episode can start from.
            EnvironmentFaultError: a world does not start.
        """
        try:
            return [task_example(self._environment, task) for task in self._environment.tasks(split)]
        finally:
            self._environment.close()
