"""An engine whose completions depend on prompt seeds alone: the same rollouts for any weights and number of ranks."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import AutoTokenizer

from src.rollout.engine import Completion, EngineSource, SamplingParams


def scripted_engine(source: EngineSource, texts: Sequence[str] = (), **_: object) -> "ScriptedEngine":
    if not texts:
        return ScriptedEngine()
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    return ScriptedAnswers([tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts])


class ScriptedEngine:
    copies_weights = False
    ranks_per_engine = 1
    weights_version = 0
    context = None

    def generate(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        return [self._completions(params, seed) for seed in seeds]

    def _completions(self, params: SamplingParams, seed: int) -> list[Completion]:
        generator = torch.Generator().manual_seed(seed)
        made = []
        for _ in range(params.n):
            length = int(torch.randint(1, params.max_new_tokens + 1, (), generator=generator))
            ids = torch.randint(5, 200, (length,), generator=generator)
            logprobs = -torch.rand(length, generator=generator)
            made.append(Completion(ids, logprobs, "length", self.weights_version))
        return made

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        for _ in named_tensors:  # sharded weights are gathered by all ranks together
            pass
        self.weights_version = version

    def release_memory(self) -> None: ...

    def close(self) -> None: ...


class ScriptedAnswers(ScriptedEngine):
    """One of some answers, by the seed."""

    def __init__(self, answers: Sequence[Sequence[int]]) -> None:
        self._answers = [torch.tensor(ids) for ids in answers]

    def _completions(self, params: SamplingParams, seed: int) -> list[Completion]:
        generator = torch.Generator().manual_seed(seed)
        made = []
        for _ in range(params.n):
            ids = self._answers[int(torch.randint(0, len(self._answers), (), generator=generator))]
            logprobs = -torch.rand(len(ids), generator=generator)
            made.append(Completion(ids, logprobs, "stop", self.weights_version))
        return made
