"""Sources to loaders of rendered prompts."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from src.data.rendering import RenderedPrompt
from src.data.sampler import ResumableLoader, RolloutSampler
from src.data.sources.base import Source, check_limits, validation_splits
from src.protocol.dialogue import TurnExample

log = logging.getLogger(__name__)


class Renderer(Protocol):
    """What turns an example into prompt ids (`rendering.PromptRenderer`)."""

    def render(self, example: TurnExample) -> RenderedPrompt:
        """The prompt of one example."""
        ...


class PromptBatch:
    """The prompts of one batch; reads like a tuple.

    Not a tuple, because Lightning takes collections apart to move or cast the tensors in them, and stops at frozen
    dataclasses. An object with `to` it moves as a whole.
    """

    def __init__(self, prompts: Iterable[RenderedPrompt]) -> None:
        """Keep the prompts in their order."""
        self.prompts = tuple(prompts)

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[RenderedPrompt]:
        return iter(self.prompts)

    def __getitem__(self, index: int) -> RenderedPrompt:
        return self.prompts[index]

    def to(self, device: torch.device, non_blocking: bool = False) -> PromptBatch:
        """The same prompts with their ids on another device."""
        return PromptBatch(replace(p, prompt_ids=p.prompt_ids.to(device, non_blocking=non_blocking)) for p in self)


class ToolDialogueDataModule(LightningDataModule):
    """Training batches of rendered prompts, one batch a rollout step, and one validation loader a split.

    A batch is a `PromptBatch`. Every rank gets the whole training batch, for the training module to divide, and its
    own share of each validation split. The trainer needs `use_distributed_sampler=False`.

    Attributes:
        renderer: set before `setup`, by the constructor or later.
        val_names: names of the validation splits, in the order of `val_dataloader()`.
        dropped: split -> prompts that were left out for being longer than `max_prompt_tokens`.
    """

    def __init__(
        self,
        train: Source,
        prompts_per_step: int,
        max_prompt_tokens: int,
        val: Source | None = None,
        renderer: Renderer | None = None,
        val_batch_size: int = 64,
        limit_val: int | None = None,
        val_splits: Sequence[str] | None = None,
        seed: int = 0,
        num_workers: int = 0,
        path: str | Mapping[str, str | None] | None = None,
    ) -> None:
        """Nothing is read or rendered before `setup`.

        Args:
            train: source of the `train` split.
            prompts_per_step: prompts of a rollout step, over all ranks.
            max_prompt_tokens: longer prompts are dropped and counted, never cut.
            val: source to validate on: its splits other than `train`, or `train` as `val` if it has no other.
                Without it, those other splits of the training source.
            renderer: see there.
            val_batch_size: prompts of a validation batch on one rank.
            limit_val: at most so many prompts a validation split, a seeded choice.
            val_splits: names of the validation splits to use; None: all there are.
            seed: of the training order and of that choice.
            num_workers: loader processes; prompts are rendered before, so 0 is as fast as any.
            path: where a config keeps the location that its sources refer to (`${data.path}`); not read here.
        """
        super().__init__()
        check_limits(max_prompt_tokens, limit_val)
        self.train_source, self.val_source = train, val or train
        self.renderer = renderer
        self.prompts_per_step, self.val_batch_size = prompts_per_step, val_batch_size
        self.max_prompt_tokens, self.limit_val = max_prompt_tokens, limit_val
        self.val_splits = None if val_splits is None else tuple(val_splits)
        self.seed, self.num_workers, self.path = seed, num_workers, path
        self.dropped: dict[str, int] = {}
        self._prompts: dict[str, list[RenderedPrompt]] = {}
        self._sampler: RolloutSampler | None = None
        self._restored: dict[str, int] | None = None

    @property
    def val_names(self) -> tuple[str, ...]:
        """See the class."""
        return tuple(self._val_splits())

    def _val_splits(self) -> dict[str, str]:
        """See `validation_splits`."""
        return validation_splits(self.train_source, self.val_source, self.val_splits)

    def prompts(self, split: str) -> Sequence[RenderedPrompt]:
        """All prompts of `train` or of a validation split, on every rank alike. Needs `setup`."""
        return self._prompts[split]

    @property
    def probe_prompt(self) -> RenderedPrompt:
        """One prompt, the same through a run and what resumes it: the shortest of the first validation split."""
        prompts = self._prompts[next(iter(self.val_names), "train")]  # validation splits are read at every stage
        return min(prompts, key=lambda prompt: len(prompt.prompt_ids))

    def draw(self, count: int, key: str, exclude: Collection[str]) -> list[RenderedPrompt]:
        """Up to `count` further training prompts, chosen by the data's seed, `key` and the rank alone.

        Fewer where not so many are left. The training order and its position stay as they are.

        Args:
            count: how many.
            key: of this drawing, e.g. the rollout step; the same key draws the same prompts.
            exclude: ids of examples that are taken.

        Ranks draw from prompts of their own, so that none is drawn twice.
        """
        rank, world_size = self._rank_of_world()
        left = [prompt for prompt in self._prompts["train"][rank::world_size] if prompt.example.id not in exclude]
        return random.Random(f"{self.seed}/{key}/{rank}").sample(left, min(count, len(left)))

    def setup(self, stage: str | None = None) -> None:
        """Read and render what the stage needs, once.

        Raises:
            ValueError: no renderer, an unknown validation split, no prompt short enough, or a validation prompt that
                is trained on.
            DataError: a bad record.
        """
        if self.renderer is None:
            raise ValueError("datamodule.renderer: expected a renderer before setup, found None.")
        if stage in (None, "fit"):
            self._render("train", self.train_source, "train", self.renderer)
        for name, split in self._val_splits().items():
            self._render(name, self.val_source, split, self.renderer)
        self._check_disjoint()
        if "train" in self._prompts and self._sampler is None:
            self._sampler = RolloutSampler(len(self._prompts["train"]), self.prompts_per_step, self.seed)
            if self._restored is not None:
                self._sampler.load_state_dict(self._restored)

    def _render(self, name: str, source: Source, split: str, renderer: Renderer) -> None:
        if name in self._prompts:
            return
        examples = source.load(split)
        limit = len(examples)
        order = list(range(limit))
        if name != "train" and self.limit_val is not None:
            limit = self.limit_val
            random.Random(f"{self.seed}:{name}").shuffle(order)
        kept: dict[int, RenderedPrompt] = {}
        dropped = 0
        for index in order:
            if len(kept) == limit:
                break
            prompt = renderer.render(examples[index])
            if len(prompt.prompt_ids) > self.max_prompt_tokens:
                dropped += 1
            else:
                kept[index] = prompt
        if not examples:
            raise ValueError(
                f"data: split '{name}' ({source.name}) has no prompt: its share of the corpus is none. Raise "
                "val_share or val_count of the source."
            )
        if not kept:
            raise ValueError(
                f"data.max_prompt_tokens: all {len(examples)} prompts of split '{name}' ({source.name}) are longer "
                f"than {self.max_prompt_tokens} tokens. Raise it."
            )
        self._prompts[name] = [kept[index] for index in sorted(kept)]
        self.dropped[name] = dropped
        log.info("%s: %d prompts, %d dropped (> %d tokens).", name, len(kept), dropped, self.max_prompt_tokens)

    def _check_disjoint(self) -> None:
        trained = {_key(prompt): prompt for prompt in self._prompts.get("train", ())}
        for name in self.val_names:
            shared = [prompt for prompt in self._prompts[name] if _key(prompt) in trained]
            if shared:
                twin = trained[_key(shared[0])]
                raise ValueError(
                    f"split '{name}': {len(shared)} of {len(self._prompts[name])} prompts are trained on too, e.g. "
                    f"example '{shared[0].example.id}' = training example '{twin.example.id}'. Hold out dialogues."
                )

    def _rank_of_world(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> ResumableLoader[RenderedPrompt]:
        """Batches of prompts_per_step prompts, from where training stands. One pass is one epoch.

        Raises:
            RuntimeError: `setup` was not called.
        """
        if self._sampler is None:
            raise RuntimeError("train_dataloader: call setup('fit') first.")
        return ResumableLoader(self._prompts["train"], self._sampler, self.num_workers, PromptBatch)

    def val_dataloader(self) -> list[DataLoader[RenderedPrompt]]:
        """One loader a split, in the order of `val_names`. Each prompt is on one rank; shares differ by at most 1.

        All ranks have as many batches, the last of which may be empty: engines of several ranks work in step.
        """
        rank, world_size = self._rank_of_world()
        loaders = []
        for name in self.val_names:
            prompts, size = self._prompts[name], self.val_batch_size
            share = prompts[rank::world_size]
            longest = -(-len(prompts) // world_size)
            batches = [list(range(start, min(start + size, len(share)))) for start in range(0, longest, size)]
            dataset = cast(Dataset[RenderedPrompt], share)
            loaders.append(
                DataLoader(
                    dataset,
                    batch_sampler=batches,
                    num_workers=self.num_workers,
                    collate_fn=PromptBatch,
                    generator=torch.Generator().manual_seed(0),  # validation draws nothing from training's
                )
            )
        return loaders

    def state_dict(self) -> dict[str, Any]:
        """The position of training in its data."""
        return {} if self._sampler is None else {"sampler": self._sampler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the batch after the last one that training took, also when `setup` comes later."""
        self._restored = state_dict.get("sampler")
        if self._sampler is not None and self._restored is not None:
            self._sampler.load_state_dict(self._restored)


def _key(prompt: RenderedPrompt) -> bytes:
    return hashlib.sha256(prompt.prompt_ids.numpy().tobytes()).digest()
