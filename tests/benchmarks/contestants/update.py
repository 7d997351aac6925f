"""Forward and backward of the policy loss: `packed` rows (ours), or the `padded` form with the same model."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import balance, pack, row_tokens
from src.algorithm.policy_loss import LossCounts, LossInputs, PolicyLoss, PolicyLossConfig
from src.models.loading.loading import PolicyConfig, load_model
from src.models.policy import Policy
from tests.benchmarks.flops import policy_update_flops
from tests.benchmarks.models import random_model
from tests.benchmarks.padded import padded_logprobs, random_groups, slices
from tests.benchmarks.resident import peak_of
from tests.benchmarks.serving import Channel

_PRODUCTS = (512, 1024, 2048, 3072, 4096)


class Updates:
    """Updates of one policy on one set of groups.

    Args:
        policy: in training mode.
        groups: to learn from.
        form: `packed` or `padded`.
        max_row_tokens: longest packed row.
        padded_rows: rows of a padded batch.
        bf16: compute in bfloat16 autocast, as the Trainer's `bf16-mixed` does.

    Attributes:
        policy: the same.
        groups: the same.
    """

    def __init__(
        self,
        policy: Policy,
        groups: list[PromptGroup],
        *,
        form: str = "packed",
        max_row_tokens: int = 16384,
        padded_rows: int = 8,
        bf16: bool = False,
    ) -> None:
        self.policy, self.groups = policy, groups
        self._update = {"packed": self._packed, "padded": self._padded}[form]
        self._max_row_tokens, self._padded_rows, self._bf16 = max_row_tokens, padded_rows, bf16
        self._counts = LossCounts.of(groups)
        self._device = next(policy.parameters()).device

    def update(self) -> float:
        """The loss; its gradient is in the policy."""
        self.policy.zero_grad(set_to_none=True)
        return self._update()

    def timed(self) -> dict[str, Any]:
        """Seconds of an update, and by what its result can be compared with another form's."""
        self.synchronise()
        started = time.perf_counter()
        loss = self.update()
        self.synchronise()
        seconds = time.perf_counter() - started
        gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
        return {"seconds": seconds, "loss": loss, "gradient_norm": float(torch.nn.utils.get_total_norm(gradients))}

    @torch.no_grad()
    def logprobs(self) -> list[float]:
        """Of all sampled tokens, from one packed row."""
        with self._autocast():
            return self.policy(pack(self.groups)).logprobs.tolist()

    def flops(self) -> int:
        """Useful operations of an update."""
        return policy_update_flops(self.policy, self.groups)

    def memory(self) -> int:
        """Most bytes of an update beyond those of the model (and, on CUDA, beyond what the allocator keeps)."""
        self.policy.zero_grad(set_to_none=True)
        if self._device.type != "cuda":
            return peak_of(self.update)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        self.update()
        return int(torch.cuda.max_memory_allocated()) - start

    def synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _packed(self) -> float:
        total = 0.0
        for indices in balance([row_tokens(group) for group in self.groups], self._max_row_tokens):
            groups = [self.groups[index] for index in indices]
            with self._autocast():
                loss = self.policy(pack(groups), loss=self._loss(groups)).loss
            loss.backward()
            total += loss.item()
        return total

    def _padded(self) -> float:
        total = 0.0
        for part in (part for group in self.groups for part in slices(group, self._padded_rows)):
            with self._autocast():
                logprobs = padded_logprobs(self.policy.model, [part])
                loss = self._loss([part])(logprobs, torch.zeros_like(logprobs))
            loss.backward()
            total += loss.item()
        return total

    def _loss(self, groups: list[PromptGroup]) -> PolicyLoss:
        return PolicyLoss(LossInputs.of(groups, first=True), PolicyLossConfig(), self._counts)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16, cache_enabled=False)


def prepare(
    *,
    form: str,
    folder: str | None = None,
    architecture: dict[str, int] | None = None,
    prompts: list[list[int]] | None = None,
    prompt_tokens: int = 0,
    completions: int,
    new_tokens: int,
    device: str = "cpu",
    rows: str = "packed",
    **settings: Any,
) -> Updates:
    """Updates of the model in `folder`, or of a random one of `architecture`, on prompts given or random."""
    loaded = (
        random_model(**(architecture or {}))
        if folder is None
        else load_model(PolicyConfig(path=folder, dtype="float32"))
    )
    policy = Policy(loaded, rows="separate" if rows == "separate" else "packed").to(torch.device(device)).train()
    vocabulary = int(loaded.config.vocab_size)
    ids = (
        [torch.randint(vocabulary, (prompt_tokens,), generator=torch.Generator().manual_seed(1))]
        if prompts is None
        else [torch.tensor(prompt) for prompt in prompts]
    )
    groups = [g.to(torch.device(device)) for g in random_groups(ids, completions, new_tokens, vocabulary)]
    return Updates(policy, groups, form=form, **settings)


def product_peak(bf16: bool, device: str = "cpu") -> float:
    """Most operations a second of a matrix product, best of several sizes and of three runs of each."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    best = 0.0
    for size in _PRODUCTS:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        for _ in range(3):
            started = time.perf_counter()
            torch.mm(a, b)
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def main() -> None:
    channel = Channel()
    updates = prepare(**channel.receive())
    channel.send(threads=torch.get_num_threads())

    def again(**job: Any) -> dict[str, Any]:
        nonlocal updates
        updates = prepare(**job)
        return {}

    tasks: dict[str, Callable[..., dict[str, Any]]] = {
        "prepare": again,
        "update": lambda: updates.timed(),
        "memory": lambda: {"bytes": updates.memory()},
        "flops": lambda: {"flops": updates.flops()},
        "logprobs": lambda: {"logprobs": updates.logprobs()},
        "product_peak": lambda bf16: {"flops_per_second": product_peak(bf16)},
    }
    channel.serve(tasks)


if __name__ == "__main__":
    main()
