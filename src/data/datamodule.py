"""Sources to loaders of rendered prompts."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal, Protocol, cast

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from src.data.rendering import RenderedPrompt
from src.data.sampler import ResumableLoader, RolloutSampler
from src.data.sources.base import Source, check_limits, dialogue_key, validation_splits
from src.data.sources.checks import TargetCheck, faults_of, remarks
from src.errors import ConfigError
from src.protocol.dialogue import TurnExample

log = logging.getLogger(__name__)


class Renderer(Protocol):
    """What turns examples into prompt ids (`rendering.PromptRenderer`).

    Attributes:
        date: the day that prompts name, kept in checkpoints; None: they name none.
        control: special tokens around messages.
    """

    date: str | None
    control: Collection[str]

    def render_all(self, examples: Sequence[TurnExample]) -> list[RenderedPrompt]:
        """The prompt of each example."""
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
        check: finds what is wrong with targets; set before `setup`. None: nothing is looked for.
        val_names: names of the validation splits, in the order of `val_dataloader()`.
        dropped: split -> prompts that were left out for being longer than `max_prompt_tokens`.
        bad: split -> examples that were left out by `on_bad_record=skip`.
        twins: training prompts that were left out for being validated on.
    """

    def __init__(
        self,
        train: Source,
        prompts_per_step: int,
        max_prompt_tokens: int,
        val: Source | Mapping[str, Any] | None = None,
        renderer: Renderer | None = None,
        val_batch_size: int = 64,
        limit_val: int | None = None,
        val_splits: Sequence[str] | None = None,
        seed: int = 0,
        num_workers: int = 0,
        on_bad_record: Literal["error", "skip"] = "error",
        path: str | Mapping[str, str | None] | None = None,
    ) -> None:
        """Nothing is read or rendered before `setup`.

        Args:
            train: source of the `train` split.
            prompts_per_step: prompts of a rollout step, over all ranks.
            max_prompt_tokens: longer prompts are dropped and counted, never cut.
            val: source to validate on: its splits other than `train`, or `train` as `val` if it has no other.
                Without it, those other splits of the training source. A mapping is no source: `path` in it is where a
                config keeps the location that the training source's `val_path` refers to.
            renderer: see there.
            val_batch_size: prompts of a validation batch on one rank.
            limit_val: at most so many prompts a validation split, a seeded choice.
            val_splits: names of the validation splits to use; None: all there are.
            seed: of the training order and of that choice.
            num_workers: loader processes; prompts are rendered before, so 0 is as fast as any.
            on_bad_record: `error` stops at the first bad example; `skip` leaves bad ones out, logs and counts them.
            path: where a config keeps the location that its sources refer to (`${data.path}`); not read here.
        """
        super().__init__()
        check_limits(max_prompt_tokens, limit_val)
        self.train_source, self.val_source = train, train if val is None or isinstance(val, Mapping) else val
        self.renderer = renderer
        self.prompts_per_step, self.val_batch_size = prompts_per_step, val_batch_size
        self.max_prompt_tokens, self.limit_val = max_prompt_tokens, limit_val
        self.val_splits = None if val_splits is None else tuple(val_splits)
        self.seed, self.num_workers, self.path = seed, num_workers, path
        self.on_bad_record = on_bad_record
        self.check: TargetCheck | None = None
        self.dropped: dict[str, int] = {}
        self.bad: dict[str, int] = {}
        self.twins = 0
        self._held_out: set[bytes] = set()
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
            ValueError: no renderer, an unknown validation split, no prompt short enough, or none that is not
                validated on.
            DataError: a bad record.
        """
        if self.renderer is None:
            raise ValueError("datamodule.renderer: expected a renderer before setup, found None.")
        if stage in (None, "fit"):
            self._render("train", self.train_source, "train", self.renderer)
        for name, split in self._val_splits().items():
            self._render(name, self.val_source, split, self.renderer)
        self._leave_out_twins()
        if "train" in self._prompts and self._sampler is None:
            self._sampler = RolloutSampler(len(self._prompts["train"]), self.prompts_per_step, self.seed)
            if self._restored is not None:
                self._sampler.load_state_dict(self._restored)

    def _render(self, name: str, source: Source, split: str, renderer: Renderer) -> None:
        if name in self._prompts:
            return
        examples = source.load(split)
        if not examples:
            raise ConfigError(
                f"data: split '{name}' ({source.name}) has no prompt: its share of the corpus is none. Raise "
                "data.train.val_share, or set data.val.path to a file."
            )
        limit, order = len(examples), list(range(len(examples)))
        if name != "train":
            self._held_out |= {dialogue_key(example).encode() for example in examples}  # those beyond the limit too
            if self.limit_val is not None:
                limit = self.limit_val
                random.Random(f"{self.seed}:{name}").shuffle(order)
        kept: dict[int, RenderedPrompt] = {}
        self.dropped[name] = self.bad[name] = 0
        while order and len(kept) < limit:
            size = max(limit - len(kept), 64)
            taken, order = order[:size], order[size:]
            good = {index: examples[index] for index in taken}
            if getattr(source, "has_targets", True):
                good = self.fine(name, good)
            prompts = zip(good, renderer.render_all(list(good.values())), strict=True)
            short = [(index, prompt) for index, prompt in prompts if len(prompt.prompt_ids) <= self.max_prompt_tokens]
            self.dropped[name] += len(good) - len(short)
            kept.update(short[: limit - len(kept)])
        if not kept:
            raise ConfigError(
                f"data: of the {len(examples)} prompts of split '{name}' ({source.name}) none is left: "
                f"{self.dropped[name]} have more than data.max_prompt_tokens={self.max_prompt_tokens} tokens, "
                f"{self.bad[name]} are bad. Raise it, or mend those."
            )
        self._prompts[name] = [kept[index] for index in sorted(kept)]
        dropped = self.dropped[name]
        log.info("%s: %d prompts, %d dropped (> %d tokens).", name, len(kept), dropped, self.max_prompt_tokens)
        for remark in remarks((prompt.example for prompt in self._prompts[name]), renderer.control):
            log.warning("%s: %s", name, remark)

    def fine(self, name: str, examples: Mapping[int, TurnExample]) -> dict[int, TurnExample]:
        """Those without a fault. A fault is raised, or counted for the split `name`, as `on_bad_record` says."""
        found = dict(zip(examples, faults_of(list(examples.values()), self.check), strict=True))
        faults = [fault for fault in found.values() if fault is not None]
        for fault in faults:
            if self.on_bad_record == "error":
                fault.args = (f"{fault} Correct it, or leave bad records out with data.on_bad_record=skip.",)
                raise fault
            log.warning("Bad record skipped: %s", fault)
        if faults:
            log.warning("%s: %d bad examples left out (data.on_bad_record=skip).", name, len(faults))
        self.bad[name] = self.bad.get(name, 0) + len(faults)
        return {index: example for index, example in examples.items() if found[index] is None}

    def screened(self, name: str, source: Source) -> list[TurnExample]:
        """The fine training examples of a source, without the dialogues that are validated on. Needs `setup`."""
        examples = self.fine(name, dict(enumerate(source.load("train")))).values()
        apart = [example for example in examples if dialogue_key(example).encode() not in self._held_out]
        if len(apart) < len(examples):
            log.warning("%s: %d examples are validated on: left out.", name, len(examples) - len(apart))
        return apart

    def _leave_out_twins(self) -> None:
        """Take prompts that are validated on, and other turns of their dialogues, out of the training prompts."""
        val = chain.from_iterable(self._prompts.get(name, ()) for name in self.val_names)
        held_out = self._held_out | set(chain.from_iterable(map(_keys, val)))
        trained = self._prompts.get("train", [])
        twins = [prompt for prompt in trained if not held_out.isdisjoint(_keys(prompt))]
        if not twins:
            return
        self._prompts["train"] = [prompt for prompt in trained if held_out.isdisjoint(_keys(prompt))]
        self.twins += len(twins)
        counts = len(twins), len(trained), twins[0].example.id
        log.warning("train: %d of %d prompts are of dialogues that are validated on, e.g. '%s': left out.", *counts)
        if not self._prompts["train"]:
            raise ConfigError(
                f"data: all {len(trained)} training prompts are validated on, none is left. Validate on others: set "
                "data.val.path (environment.rows.val of an environment) to another file, or hold dialogues out with "
                "val_share of the source."
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
        """The position of training in its data, and the date in its prompts."""
        state = {} if self._sampler is None else {"sampler": self._sampler.state_dict()}
        date = None if self.renderer is None else self.renderer.date
        return state if date is None else {**state, "date": date}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the batch after the last one that training took, also when `setup` comes later."""
        self._restored = state_dict.get("sampler")
        if self._sampler is not None and self._restored is not None:
            self._sampler.load_state_dict(self._restored)


def _keys(prompt: RenderedPrompt) -> tuple[bytes, bytes]:
    """Digests by which prompts are told apart: equal prompts share the first, turns of one dialogue the second."""
    return hashlib.sha256(prompt.prompt_ids.numpy().tobytes()).digest(), dialogue_key(prompt.example).encode()
