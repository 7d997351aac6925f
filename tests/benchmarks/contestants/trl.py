"""TRL's GRPOTrainer, in its own environment: whole steps, or forward and backward alone. Imports nothing of `src`.

Set up to be as fast as it can be: no logging, no reference model, old log-probabilities not computed (its own shortcut
where a rollout is used once), a cheap reward, and no gradient checkpointing, its default, unless the job asks for it.
Prompts come as token ids, the same as ours.
"""

from __future__ import annotations

import tempfile
import time
from importlib.metadata import version
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]

from tests.benchmarks.resident import mark, peak_since
from tests.benchmarks.serving import Channel

_MANY = 10**9


def parity(completions: list[str], **_: Any) -> list[float]:
    """A reward by which completions differ: 1 for a text of an even number of bytes."""
    return [float(len(text.encode()) % 2 == 0) for text in completions]


class GivenPrompts(GRPOTrainer):  # type: ignore[misc, unused-ignore]
    """Takes token ids for prompts; a prompt's text is its number.

    Attributes:
        given: the ids.
        last: the microbatches of the last rollout, as the loss takes them.
    """

    given: list[list[int]]
    last: list[dict[str, Any]]

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.given[int(prompt)] for prompt in prompts], None, {}

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        inputs = super()._prepare_inputs(generation_batch)
        self.last = self._buffered_inputs
        return inputs

    def work(self) -> dict[str, int]:
        """Completions and tokens of the last rollout."""
        return {
            "completions": sum(len(batch["completion_ids"]) for batch in self.last),
            "tokens": sum(int(batch["completion_mask"].sum()) for batch in self.last),
            "prompt_tokens": sum(int(batch["prompt_mask"].sum()) for batch in self.last),
        }


class Turnstile(TrainerCallback):
    """Lets one step through for each request; after the first, updates alone if that is what is asked for."""

    def __init__(self, channel: Channel, trainer: GivenPrompts) -> None:
        self._channel, self._trainer = channel, trainer
        self._started, self._resident = 0.0, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        while (task := self._channel.receive()["task"]) != "step":
            self._channel.send(**self._update(memory=task == "memory"))
        self._resident = mark()
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seconds = time.perf_counter() - self._started
        self._channel.send(seconds=seconds, bytes=peak_since(self._resident), **self._trainer.work())

    def _update(self, memory: bool) -> dict[str, Any]:
        """Forward and backward of the last rollout's microbatches, as `training_step` does them."""
        trainer, model = self._trainer, self._trainer.model
        cuda = trainer.accelerator.device.type == "cuda"
        model.zero_grad(set_to_none=True)
        start = mark()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            start = torch.cuda.memory_allocated()
        started = time.perf_counter()
        for batch in trainer.last:
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model, batch)
            trainer.accelerator.backward(loss / len(trainer.last))
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        peak = int(torch.cuda.max_memory_allocated()) - start if cuda else peak_since(start)
        model.zero_grad(set_to_none=True)
        return {"seconds": seconds, "bytes": peak, **trainer.work()}


def build(job: dict[str, Any], channel: Channel, folder: str) -> GivenPrompts:
    """A trainer of the job's model and shape."""
    rows = job["prompts"] * job["completions"]
    device = job.get("device", "cpu")
    arguments = GRPOConfig(
        output_dir=folder,
        use_cpu=device == "cpu",
        bf16=job.get("bf16", False),
        per_device_train_batch_size=job["trl_rows"],
        gradient_accumulation_steps=rows // job["trl_rows"],
        num_generations=job["completions"],
        max_completion_length=job["new_tokens"],
        temperature=1.0,
        top_k=0,
        beta=0.0,
        loss_type="grpo",
        num_iterations=1,
        learning_rate=1e-6,
        max_grad_norm=1.0,
        gradient_checkpointing=job["checkpointing"],
        max_steps=_MANY,
        shuffle_dataset=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32)
    trainer = GivenPrompts(
        model,
        parity,
        arguments,
        Dataset.from_list([{"prompt": str(number)} for number in range(job["prompts"])]),
        processing_class=tokenizer,
    )
    trainer.given = job["prompt_ids"]
    trainer.add_callback(Turnstile(channel, trainer))
    return trainer


def main() -> None:
    channel = Channel()
    job = channel.receive()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(job, channel, folder)
        channel.send(threads=torch.get_num_threads(), trl=version("trl"), trl_transformers=version("transformers"))
        trainer.train()


if __name__ == "__main__":
    main()
