"""The data module by itself, under a real Trainer, and as two ranks see it."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from src.data.datamodule import PromptBatch, ToolDialogueDataModule
from src.data.rendering import RenderedPrompt
from src.protocol.dialogue import DataError, Message, TurnExample


class Numbers:
    """A source whose example n of a split is the number n, offset by the split."""

    def __init__(self, name: str = "numbers", **sizes: int) -> None:
        self.name, self.sizes = name, sizes

    def splits(self) -> tuple[str, ...]:
        return tuple(self.sizes)

    def load(self, split: str) -> list[TurnExample]:
        offset = 1000 * list(self.sizes).index(split)
        texts = [str(offset + n) for n in range(self.sizes[split])]
        answer = Message("assistant", "!")
        return [TurnExample((), (Message("user", text),), answer, self.name, text) for text in texts]


class NumberRenderer:
    """Number n as a prompt of n % 10 + 1 tokens, the first of which is n."""

    date: str | None = None
    control = ()

    def render_all(self, examples: Sequence[TurnExample]) -> list[RenderedPrompt]:
        numbers = [int(example.history[0].text) for example in examples]
        ids = [torch.tensor([number] + [0] * (number % 10)) for number in numbers]
        return [RenderedPrompt(one, "", example) for one, example in zip(ids, examples, strict=True)]


def module(train: Numbers | None = None, **options: Any) -> ToolDialogueDataModule:
    train = train or Numbers(train=22, val=7, val_unseen=5)
    defaults: dict[str, Any] = {"prompts_per_step": 4, "max_prompt_tokens": 10, "renderer": NumberRenderer()}
    return ToolDialogueDataModule(train, **{**defaults, **options})


def ready(train: Numbers | None = None, **options: Any) -> ToolDialogueDataModule:
    made = module(train, **options)
    made.setup()
    return made


def numbers(batch: Iterable[RenderedPrompt]) -> list[int]:
    return [int(prompt.prompt_ids[0]) for prompt in batch]


def test_a_training_batch_holds_the_prompts_of_one_rollout_step() -> None:
    batches = list(ready().train_dataloader())

    assert [len(batch) for batch in batches] == [4] * 5
    assert all(isinstance(prompt, RenderedPrompt) for batch in batches for prompt in batch)
    assert len({number for batch in batches for number in numbers(batch)}) == 20


def test_every_validation_split_has_its_loader_in_a_fixed_order() -> None:
    made = ready(val_batch_size=3)
    loaders = made.val_dataloader()

    assert made.val_names == ("val", "val_unseen")
    assert [[numbers(batch) for batch in loader] for loader in loaders] == [
        [[1000, 1001, 1002], [1003, 1004, 1005], [1006]],
        [[2000, 2001, 2002], [2003, 2004]],
    ]


def test_a_separate_source_replaces_the_validation_splits() -> None:
    class Other(Numbers):
        def load(self, split: str) -> list[TurnExample]:
            return Numbers(a=0, b=0, c=0, **{split: 2}).load(split)  # numbers from 3000, never trained on

    assert ready(val=Other(train=2, val_new=2)).val_names == ("val_new",)
    made = ready(val=Other(train=2))  # nothing but a training split: that is what to validate on
    assert made.val_names == ("val",)
    assert numbers(made.prompts("val")) == [3000, 3001]


def test_overlong_prompts_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        made = ready(max_prompt_tokens=4)

    # numbers ending in 0 to 3 have at most 4 tokens: 10 of 0..21, four of 1000..1006, four of 2000..2004
    assert numbers(made.prompts("train")) == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21]
    assert numbers(made.prompts("val_unseen")) == [2000, 2001, 2002, 2003]
    assert made.dropped == {"train": 12, "val": 3, "val_unseen": 1}
    assert "train: 10 prompts, 12 dropped (> 4 tokens)." in caplog.text


def test_a_split_that_is_dropped_whole_is_an_error() -> None:
    class Long(NumberRenderer):
        def render_all(self, examples: Sequence[TurnExample]) -> list[RenderedPrompt]:
            return [RenderedPrompt(torch.zeros(11, dtype=torch.int64), "", example) for example in examples]

    with pytest.raises(
        ValueError, match=r"data: of the 22 prompts of split 'train' \(numbers\) none is left: 22 have more than data"
    ):
        ready(renderer=Long())


def test_a_split_without_a_prompt_says_why() -> None:
    with pytest.raises(ValueError, match=r"split 'val' \(numbers\) has no prompt: its share of the corpus is none"):
        ready(Numbers(train=22, val=0))


def test_limit_val_is_a_seeded_choice_of_each_split() -> None:
    source = Numbers(train=80, val=100, val_unseen=3)
    made = ready(source, limit_val=10)
    chosen = numbers(made.prompts("val"))

    assert (len(chosen), len(made.prompts("val_unseen"))) == (10, 3)
    assert chosen == sorted(chosen) != list(range(1000, 1010))
    assert chosen == numbers(ready(source, limit_val=10).prompts("val"))
    assert chosen != numbers(ready(source, limit_val=10, seed=1).prompts("val"))
    assert len(ready(source, limit_val=10, max_prompt_tokens=1).prompts("val")) == 10  # 1000, 1010, …


def test_val_splits_are_those_to_validate_on() -> None:
    made = ready(val_splits=["val_unseen"])
    assert made.val_names == ("val_unseen",)
    (loader,) = made.val_dataloader()
    assert [numbers(batch) for batch in loader] == [[2000, 2001, 2002, 2003, 2004]]
    assert set(made.dropped) == {"train", "val_unseen"}  # the other is not even rendered
    assert module(val_splits=["val_unseen", "val"]).val_names == module().val_names  # in the source's order
    for wrong in (["val", "vla"], ["train"], []):
        with pytest.raises(ValueError, match=r"data\.val_splits: expected some of \['val', 'val_unseen'\] or null"):
            ready(val_splits=wrong)


def test_training_prompts_that_are_validated_on_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    class Leaky(Numbers):
        def load(self, split: str) -> list[TurnExample]:
            return Numbers(train=22).load("train")[: self.sizes[split]]

    caplog.set_level("WARNING")
    made = ready(Leaky(train=22, val=3))
    assert [int(prompt.example.id) for prompt in made.prompts("train")] == list(range(3, 22))
    assert (made.twins, len(made.prompts("val"))) == (3, 3)
    assert ready(Leaky(train=22, val=3), limit_val=1).twins == 3  # those beyond the limit count too
    assert "train: 3 of 22 prompts are of dialogues that are validated on, e.g. '0': left out." in caplog.text
    with pytest.raises(ValueError, match=r"data: all 22 training prompts are validated on.*set data\.val\.path"):
        ready(Leaky(train=22, val=22))


def test_a_bad_example_stops_the_run_or_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    class Bad(Numbers):
        def load(self, split: str) -> list[TurnExample]:
            found = super().load(split)
            if split == "train":
                found[1] = replace(found[1], target=Message("assistant"), where="x.json[1]")
            return found

    class Check:
        """The third training target earns nothing."""

        def faults(self, examples: Sequence[TurnExample]) -> list[DataError | None]:
            fault = DataError("x.json[2]", "target", "full marks", "little")
            return [fault if example.id == "2" else None for example in examples]

    with pytest.raises(DataError, match=r"x\.json\[1\]: field 'target': expected calls or a response"):
        ready(Bad(train=22, val=7))
    caplog.set_level("WARNING")
    made = module(Bad(train=22, val=7), on_bad_record="skip")
    made.check = Check()  # type: ignore[assignment]
    made.setup("fit")
    assert [int(prompt.example.id) for prompt in made.prompts("train")] == [0, *range(3, 22)]
    assert made.bad == {"train": 2, "val": 0}
    assert "Bad record skipped: x.json[2]: field 'target': expected full marks, found 'little'." in caplog.text
    assert "train: 2 bad examples left out (data.on_bad_record=skip)." in caplog.text


def test_the_date_of_prompts_is_kept_with_the_position() -> None:
    class Dated(NumberRenderer):
        date = "2026-11-29"

    assert ready(renderer=Dated()).state_dict()["date"] == "2026-11-29"
    assert "date" not in ready().state_dict()


def test_bad_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"datamodule\.renderer: expected a renderer before setup"):
        ready(renderer=None)
    with pytest.raises(ValueError, match=r"data\.limit_val: expected at least 1 or null, found 0"):
        module(limit_val=0)
    with pytest.raises(ValueError, match=r"data\.max_prompt_tokens: expected at least 1, found 0"):
        module(max_prompt_tokens=0)
    with pytest.raises(ValueError, match=r"data\.prompts_per_step: expected at most the 22 training prompts.*found 23"):
        ready(prompts_per_step=23)


def as_ranks(world_size: int, **options: Any) -> list[ToolDialogueDataModule]:
    made = []
    for rank in range(world_size):
        one = module(**options)
        one.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
        one.setup()
        made.append(one)
    return made


def test_every_rank_sees_the_whole_training_batch() -> None:
    first, second = as_ranks(2)
    whole = [numbers(batch) for batch in ready().train_dataloader()]
    assert [[numbers(batch) for batch in rank.train_dataloader()] for rank in (first, second)] == [whole, whole]
    assert first.state_dict() == second.state_dict()


def test_ranks_draw_different_prompts() -> None:
    first, second = ({prompt.example.id for prompt in rank.draw(30, "0/0", {"3"})} for rank in as_ranks(2))
    everything = {prompt.example.id for prompt in ready().prompts("train")}
    assert not first & second and first | second == everything - {"3"}


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_cover_validation_once_without_padding(world_size: int) -> None:
    ranks = as_ranks(world_size, prompts_per_step=24, train=Numbers(train=24, val=7, val_unseen=5))
    for split, expected in ((0, range(1000, 1007)), (1, range(2000, 2005))):
        shares = [[n for batch in rank.val_dataloader()[split] for n in numbers(batch)] for rank in ranks]
        assert sorted(chain.from_iterable(shares)) == list(expected)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert len({len(rank.val_dataloader()[split]) for rank in ranks}) == 1  # some batches are empty


class Recorder(LightningModule):
    """Records the prompts of each training step; steps manually, twice a batch, as the real module does."""

    def __init__(self, stop_at: int = -1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []
        self.validated: list[int] = []
        self.stop_at = stop_at

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.seen.append(numbers(batch))
        for _ in range(2):
            self.optimizers().step()  # type: ignore[union-attr]

    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validated += numbers(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(folder: Path, steps: int, checkpoint: str | None = None, workers: int = 0, **options: Any) -> Recorder:
    """Train up to `steps` rollout steps in all, with a checkpoint after each."""
    recorder = Recorder()
    keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2 * steps,
        max_epochs=-1,
        callbacks=[keep],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(recorder, datamodule=module(num_workers=workers), ckpt_path=checkpoint)
    return recorder


def test_the_trainer_rolls_over_epochs(tmp_path: Path) -> None:
    recorder = fit(tmp_path, steps=12)  # 22 prompts, 4 a step: 5 steps an epoch

    made = ready()
    expected = [numbers(batch) for _ in range(3) for batch in made.train_dataloader()]
    assert recorder.seen == expected[:12]
    assert sorted(recorder.validated[:12]) == [*range(1000, 1007), *range(2000, 2005)]  # after the first epoch


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 6, 10])
def test_a_resumed_run_continues_with_the_very_next_batch(tmp_path: Path, stop: int) -> None:
    # in the first epoch, at its last batch (5), and just behind it; checkpoints are named after optimizer steps
    uninterrupted = fit(tmp_path / "a", steps=12).seen
    stopped = fit(tmp_path / "b", steps=stop).seen
    resumed = fit(tmp_path / "c", steps=12, checkpoint=str(tmp_path / "b" / f"step={2 * stop}.ckpt")).seen

    assert stopped + resumed == uninterrupted


def test_a_run_resumes_from_any_of_its_earlier_checkpoints(tmp_path: Path) -> None:
    uninterrupted = fit(tmp_path / "a", steps=7).seen
    for stop in (2, 5):
        checkpoint = str(tmp_path / "a" / f"step={2 * stop}.ckpt")
        assert fit(tmp_path / f"b{stop}", steps=7, checkpoint=checkpoint).seen == uninterrupted[stop:]


def test_validation_between_epochs_does_not_disturb_the_order(tmp_path: Path) -> None:
    every = {"val_check_interval": 2, "check_val_every_n_epoch": None}
    uninterrupted = fit(tmp_path / "a", steps=9, **every).seen
    for stop in (4, 5, 6):
        checkpoint = str(tmp_path / "a" / f"step={2 * stop}.ckpt")
        assert fit(tmp_path / f"b{stop}", steps=9, checkpoint=checkpoint, **every).seen == uninterrupted[stop:]


def test_resuming_with_other_prompts_a_step_is_refused(tmp_path: Path) -> None:
    state = ready().state_dict()
    made = module(prompts_per_step=2)
    made.load_state_dict(state)
    with pytest.raises(ValueError, match=r"data\.prompts_per_step: expected 4 as in the checkpoint, found 2"):
        made.setup()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_batches_survive_every_precision(tmp_path: Path, precision: str) -> None:
    assert fit(tmp_path, steps=2, precision=precision).seen == fit(tmp_path, steps=2).seen


def test_a_batch_moves_as_a_whole() -> None:
    batch = next(iter(ready().train_dataloader()))
    moved = batch.to(torch.device("meta"))

    assert {prompt.prompt_ids.device.type for prompt in moved} == {"meta"}
    assert [prompt.example for prompt in moved] == [prompt.example for prompt in batch]
    assert (len(moved), moved[0].response_prefix) == (4, "")
