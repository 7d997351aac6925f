"""The order of training prompts: shuffled each epoch, the same on every rank, resumable after any batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from src.errors import ConfigError

T = TypeVar("T")


def epoch_order(size: int, seed: int, epoch: int) -> list[int]:
    """A permutation of `range(size)` that (seed, epoch) fixes on every platform."""
    order = list(range(size))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return order


class RolloutSampler(Sampler[list[int]]):
    """Batches of example indices, one a rollout step.

    One pass is one epoch; examples that do not fill a last batch sit this epoch out (another order, other examples,
    in the next). Every rank sees the whole batch: who samples what is the training module's to say. The state is the
    epoch and the number of its batches that were handed to training, as `ResumableLoader` reports them, not those that
    loader workers fetched ahead; a pass starts behind them.

    >>> sampler = RolloutSampler(size=5, batch_size=2, seed=0)
    >>> first_pass = list(sampler)
    >>> sampler.advance()
    >>> list(sampler) == first_pass[1:]
    True
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        """Check the sizes.

        Raises:
            ValueError: an empty batch, or fewer examples than one batch.
        """
        if batch_size < 1:
            raise ConfigError(f"data.prompts_per_step: expected at least 1, found {batch_size}.")
        if size < batch_size:
            raise ConfigError(
                f"data.prompts_per_step: expected at most the {size} training prompts that there are, found "
                f"{batch_size}."
            )
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """Each batch that is left in the epoch."""
        order = epoch_order(self.size, self.seed, self.epoch)
        for start in range(self.position * self.batch_size, len(self) * self.batch_size, self.batch_size):
            yield order[start : start + self.batch_size]

    def advance(self) -> None:
        """Count one batch as handed to training; the last one opens the next epoch."""
        self.position += 1
        if self.position == len(self):
            self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Where training is, and what that position counts. The same on every rank."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "size": self.size,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue behind the last batch that was handed to training. The number of ranks may have changed.

        Raises:
            ValueError: another number of prompts, batch size or seed: the position would mean other prompts.
        """
        keys = {"size": "number of training prompts", "batch_size": "data.prompts_per_step", "seed": "data.seed"}
        for key, name in keys.items():
            if state[key] != getattr(self, key):
                raise ValueError(
                    f"{name}: expected {state[key]} as in the checkpoint, found {getattr(self, key)}. Resume with the "
                    "checkpoint's data configuration, or start a new run from its weights."
                )
        self.epoch, self.position = state["epoch"], state["position"]


class ResumableLoader(DataLoader[T], Generic[T]):
    """A loader over a `RolloutSampler` that tells it which batches training took.

    Lightning sees `state_dict` and knows that the loader resumes in mid-epoch.
    """

    def __init__(
        self,
        dataset: Sequence[T],
        sampler: RolloutSampler,
        num_workers: int = 0,
        collate_fn: Callable[[list[T]], Any] = list,
    ) -> None:
        """`collate_fn` makes a batch of a list of the dataset's items; a list is what it stays by default."""
        items = cast(Dataset[T], dataset)
        own = torch.Generator()  # DataLoader draws a number for each pass, and a resumed run makes one pass more
        super().__init__(
            items, batch_sampler=sampler, num_workers=num_workers, collate_fn=collate_fn, generator=own.manual_seed(0)
        )
        self.rollout_sampler = sampler

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a plain iterator, not a _BaseDataLoaderIter
        """What is left of the epoch. A batch counts as taken when it leaves the loader."""
        for batch in super().__iter__():
            self.rollout_sampler.advance()
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The sampler's."""
        return self.rollout_sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The sampler's."""
        self.rollout_sampler.load_state_dict(state)
