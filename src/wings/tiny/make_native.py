r"""Makes the tiny policy that speaks a real model's tool format and reads its tools.

Weights of the same size and architecture as `make`'s, prompts in the layout `native`, calls in the format `hermes`.
Trained in two stages on the corpus `composed`: on an expert's demonstrations until it copies names and values that it
has never seen, then shortly on an imperfect demonstrator's. Says during training how much of both validation splits it
gets right:

    python -m src.wings.tiny.make_native

That is 9,100 steps of about 0.42 s on two cores. `--start` goes on from a folder that it wrote, `--expert-steps 0`
from there to the second stage at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import cast

import lightning as L
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from src.data.rendering import PromptRenderer
from src.data.sources.composed.source import TRAINING_GLUE, ComposedSource, Habits
from src.data.templates.native import NativeTemplate
from src.environments.generated.source import GeneratedSource
from src.models.policy import Policy
from src.protocol.dialogue import TurnExample
from src.protocol.token_bytes import TokenBytes
from src.rewards.tool_call import RewardParts, ToolCallReward
from src.rollout.collect import Collector, ScoredGroup
from src.rollout.engine import SamplingParams
from src.rollout.native.engine import NativeEngine
from src.wings.exporting.folder import export
from src.wings.tiny.make import SPECIAL, build_model, trained_tokenizer

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parents[2] / "models" / "tiny_native"
"""Where the policy lives in the project."""

_EXPERT = Path(__file__).parents[3] / "logs" / "tiny_policy" / "expert_native"
"""Where the result of the first stage goes."""

_TAGS = [f"<{slash}{tag}>" for tag in ("think", "tool_call", "tool_response", "tools") for slash in ("", "/")]
_HARD = {"single": 0.34, "parallel_same": 0.2, "parallel_different": 0.22, "refusal": 0.1, "ask": 0.14}
"""Kinds of dialogues of the last demonstrations, with more of several calls than the corpus has."""

TEMPLATE = (Path(__file__).parent / "native_template.jinja").read_text()
"""As Qwen3's, but a tool is one line: what it is for, its name, its parameters and their types."""


def _pieces() -> str:
    """What the tokenizer splits texts into before it looks for tokens.

    A word is the same tokens everywhere, in a name, a sentence and JSON: the space around it belongs to the words of
    training's phrasings, or to nothing. Capitals and digits stand alone.
    """
    one = rf"(?<![A-Za-z0-9_])(?:{'|'.join(sorted(TRAINING_GLUE, reverse=True))})(?![A-Za-z0-9_])"
    return rf" ?{one}(?: (?!{one}))?|[a-z]+|[A-Z]|[0-9]|_|\n+|[^\sA-Za-z0-9_]+(?: [^\sA-Za-z0-9_<]+)* ?|\s"


def build_tokenizer(vocab_size: int = 1024, examples: int = 4000, seed: int = 7) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer on dialogues with invented words only, so that no token is rare in them."""
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    bare.chat_template = TEMPLATE
    template = NativeTemplate(bare)
    marks = re.compile("|".join(map(re.escape, _TAGS + SPECIAL)))
    texts = []
    for example in ComposedSource(examples, seed=seed, invented=1.0).load("train"):
        texts += marks.split(template.prompt_text(example) + template.target_text(example))
    return trained_tokenizer(texts, _pieces(), _TAGS, TEMPLATE, vocab_size)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Dialogue steps of like length, padded at the end: ids, and the weight of each id's loss."""

    ids: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Batches(IterableDataset[_Batch]):
    """Prompts with their targets, endless; sixteen batches at a time are sorted by length, and come in random order.

    Attributes:
        examples: endless.
        renderer: of them.
        batch_size: dialogue steps of each.
        prompt_weight: see `Stage`.
        pad: id behind the shorter ones.
        random_state: of the order.
    """

    examples: Iterator[TurnExample]
    renderer: PromptRenderer
    batch_size: int
    prompt_weight: float
    pad: int
    random_state: Tensor

    def __iter__(self) -> Iterator[_Batch]:
        order = torch.Generator()
        order.set_state(self.random_state)
        while True:
            yield from self._some(list(islice(self.examples, 16 * self.batch_size)), order)

    def _some(self, taken: Sequence[TurnExample], order: torch.Generator) -> Iterator[_Batch]:
        prompts = self.renderer.render_all(taken)
        targets = self.renderer.render_targets(taken)
        pairs = [(prompt.prompt_ids, target) for prompt, target in zip(prompts, targets, strict=True)]
        pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        groups = [pairs[start : start + self.batch_size] for start in range(0, len(pairs), self.batch_size)]
        for index in torch.randperm(len(groups), generator=order).tolist():
            ids = [torch.cat(pair) for pair in groups[index]]
            weights = [
                torch.cat([torch.full((len(prompt),), self.prompt_weight), torch.ones(len(target))])
                for prompt, target in groups[index]
            ]
            pack = torch.nn.utils.rnn.pad_sequence
            yield _Batch(pack(ids, True, self.pad), pack(weights, True, 0.0))


def loss_of(model: Qwen3ForCausalLM, batch: _Batch) -> Tensor:
    """Weighted mean of the next tokens' cross-entropies; rows are causal, so padding behind them is not seen."""
    states = model.model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
    weights = batch.weights[:, 1:]
    kept = weights > 0
    losses = F.cross_entropy(model.lm_head(states[kept]), batch.ids[:, 1:][kept], reduction="none")
    return (losses * weights[kept]).sum() / weights.sum()


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made nearly orthogonal before each step: learns to copy in fewer steps than AdamW's.

    torch.optim.Muon does the same in bfloat16, which takes a CPU longer than the rest of the step.
    """

    def __init__(self, params: Sequence[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        """Take matrices only."""
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the matrices, those of one shape together."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for param in group["params"]:
                mean = self.state[param].setdefault("mean", torch.zeros_like(param))
                mean.lerp_(param.grad, 1 - group["momentum"])
                shapes.setdefault(param.shape, []).append((param, param.grad.lerp(mean, group["momentum"])))
            for shape, pairs in shapes.items():
                steps = orthogonal(torch.stack([step for _, step in pairs]))
                for (param, _), step in zip(pairs, steps, strict=True):
                    param.add_(step, alpha=-group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5)


def orthogonal(steps: Tensor) -> Tensor:
    """Five Newton-Schulz iterations on a stack of matrices: singular values near 1."""
    tall = steps.shape[1] > steps.shape[2]
    x = steps.mT if tall else steps
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of training.

    Attributes:
        steps: optimizer steps.
        batch_size: dialogue steps of each.
        rate: learning rate of the matrices; embeddings and norms have a fifth.
        prompt_weight: weight of a prompt token's loss, so that the policy also learns to read.
        every: steps between two looks at the validation splits.
    """

    steps: int
    batch_size: int
    rate: float
    prompt_weight: float = 0.15
    every: int = 300


class Trainer:
    """Trains a policy in stages and says how much of the validation splits it gets right."""

    def __init__(
        self, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, source: ComposedSource | GeneratedSource
    ) -> None:
        """Prepare the validation splits of a corpus."""
        self._policy = Policy(model)  # faster norms
        self._model = model
        self._tokenizer = tokenizer
        self._renderer = PromptRenderer(tokenizer, layout="native")
        self._params = SamplingParams(
            temperature=0.0, max_new_tokens=144, stop_token_ids=(int(tokenizer.eos_token_id),)
        )
        self._validation = {split: self._renderer.render_all(source.load(split)) for split in ("val", "val_unseen")}
        lengths = sorted(len(prompt.prompt_ids) for prompts in self._validation.values() for prompt in prompts)
        log.info("Prompts have %d tokens at the median, %d at most.", lengths[len(lengths) // 2], lengths[-1])

    def run(self, stage: Stage, examples: Iterator[TurnExample], folder: Path) -> None:
        """Train on a stage's demonstrations; write the folder at every look."""
        hidden = [p for name, p in self._model.named_parameters() if p.ndim == 2 and "embed" not in name]
        kept = {id(param) for param in hidden}
        others = [param for param in self._model.parameters() if id(param) not in kept]
        optimizers = [
            Muon(hidden, stage.rate),
            torch.optim.AdamW(others, stage.rate / 5, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        pad = int(self._tokenizer.pad_token_id)
        state = torch.get_rng_state()
        stream = Batches(examples, self._renderer, stage.batch_size, stage.prompt_weight, pad, state)
        # Made in a process of their own, which takes a sixth of the time of a step.
        loader = DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=16, multiprocessing_context="fork")
        mean, started = 0.0, time.monotonic()
        self._model.train()
        for step, batch in enumerate(islice(loader, stage.steps), 1):
            share = min(1.0, step / 50, (stage.steps - step + 1) / (0.5 * stage.steps))
            for optimizer, rate in zip(optimizers, (stage.rate, stage.rate / 5), strict=True):
                optimizer.param_groups[0]["lr"] = rate * share
            loss = loss_of(self._model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            mean += (loss.item() - mean) * max(0.02, 1 / step)
            if step % stage.every == 0 or step == stage.steps:
                log.info("Step %d, %.0f s, loss %.3f. %s", step, time.monotonic() - started, mean, self.measure())
                export(self._model, self._tokenizer, folder)

    def measure(self) -> str:
        """Greedy answers to the validation prompts: what is right, by split and kind."""
        collector = Collector(
            NativeEngine(self._model),
            ToolCallReward(),
            TokenBytes.from_tokenizer(self._tokenizer),
            self._params.stop_token_ids,
        )
        told = []
        for split, prompts in self._validation.items():
            groups = collector.collect(prompts, self._params, seed=0, rollout_step=0, progress=0.0)
            told.append(f"{split}: " + ", ".join(f"{key} {share:.2f}" for key, share in shares(groups).items()))
        self._model.train()
        return "; ".join(told)


def shares(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """How much is right, of all and by kind; of the names and values in calls, how many stand in the prompt at all."""
    found: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        example, answer = group.prompt.example, group.completions[0]
        parts = cast(RewardParts, answer.reward.parts)
        found["exact"].append(parts.exact_match)
        if example.target.calls:
            found["names"].append(parts.name)
            found["keys"].append(parts.parameter_names)
            found["values"].append(parts.parameter_values)
        tools = {tool.name: json.dumps(tool.json) for tool in example.tools}
        text = " ".join([*(message.text for message in example.history), *tools.values()])
        for call in answer.decoded.parsed.calls or ():
            found["copied names"].append(call.name in tools)
            values = call.parameters.values()
            found["copied values"] += [isinstance(one, bool) or str(one) in text for one in values]
        found[example.tags[0]].append(parts.exact_match)
    return {key: sum(each) / len(each) for key, each in found.items()}


def main() -> None:
    """Build the tokenizer, train both stages, write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write it")
    parser.add_argument("--expert-folder", type=Path, default=_EXPERT, help="where to keep the first stage")
    parser.add_argument("--start", type=Path, help="start from this folder's weights and tokenizer")
    parser.add_argument("--short-steps", type=int, default=1200, help="the first steps, on two or three tools a prompt")
    parser.add_argument("--full-steps", type=int, default=4800, help="the next ones, before the hard prompts")
    parser.add_argument("--expert-steps", type=int, default=9000, help="steps on an expert's demonstrations in all")
    parser.add_argument("--habit-steps", type=int, default=100, help="steps on an imperfect demonstrator's")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--habit-rate", type=float, default=0.01)
    parser.add_argument("--prompts", type=int, default=100, help="of each validation split")
    parser.add_argument("--every", type=int, default=300, help="steps between two looks at them")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    L.seed_everything(args.seed)

    if args.start is None:
        tokenizer = build_tokenizer()
        model = build_model(tokenizer)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start)
        model = Qwen3ForCausalLM.from_pretrained(args.start)
    log.info("%d weights, %d tokens in the vocabulary.", sum(p.numel() for p in model.parameters()), len(tokenizer))
    trainer = Trainer(model, tokenizer, ComposedSource(1, args.prompts, seed=1))
    if args.expert_steps:
        short = ComposedSource(seed=1000 + args.seed, tools=(2, 3)).stream("train")
        full = ComposedSource(seed=1100 + args.seed).stream("train")
        hard = ComposedSource(seed=1200 + args.seed, kinds=_HARD, noise=0.5).stream("train")
        parts = ((short, args.short_steps), (full, args.full_steps))
        examples = chain(*(islice(part, steps * args.batch_size) for part, steps in parts), hard)
        stage = Stage(args.expert_steps, args.batch_size, args.rate, every=args.every)
        trainer.run(stage, examples, args.expert_folder)
    if args.habit_steps:
        habits = ComposedSource(seed=2000 + args.seed, habits=Habits()).stream("train")
        stage = Stage(args.habit_steps, args.batch_size, args.habit_rate, every=args.every)
        trainer.run(stage, habits, args.folder)


if __name__ == "__main__":
    main()
