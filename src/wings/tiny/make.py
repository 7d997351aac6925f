r"""Makes the tiny policies that come with the project: `make tiny-policy`.

A Qwen3-architecture model of 0.9 M weights with a byte-level BPE tokenizer of its own, trained on synthetic dialogues
in two stages: on an expert's demonstrations until it copies unseen values from the prompt, then shortly on an
imperfect demonstrator's, whose bad habits reinforcement learning can undo. `--reasoning long` makes the one that
thinks at several times the length of its calls; it has the same tokenizer, so that token counts compare. It was made
from the first stage of the other:

    python -m src.wings.tiny.make --reasoning long --start logs/tiny_policy/expert \
        --expert-steps 1100 --habit-steps 300 --batch-size 16 --learning-rate 1.5e-3
"""

from __future__ import annotations

import argparse
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import lightning as L
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from src.data.rendering import PromptRenderer, compact_prompt
from src.data.sources.synthetic.source import Habits, SyntheticSource
from src.data.sources.synthetic.thoughts import Reasoning
from src.models.loading.loading import LoadedPolicy
from src.models.policy import Policy
from src.protocol.formats.rest import step_text
from src.training.optimizers import OptimizerSettings
from src.training.warm_start import WarmStart, imitate
from src.wings.exporting.folder import export

log = logging.getLogger(__name__)

_MODELS = Path(__file__).parents[2] / "models"
FOLDERS: dict[Reasoning, Path] = {"brief": _MODELS / "tiny", "long": _MODELS / "tiny_long"}
"""Where the tiny policies live in the project."""

_POSITIONS: dict[Reasoning, int] = {"brief": 1024, "long": 4096}
"""An eighth of them is what an evaluation lets an answer take (`evaluation.answering`); both policies were trained
on less than 600."""

_EXPERTS = Path(__file__).parents[3] / "logs" / "tiny_policy"
_EXPERT_FOLDERS: dict[Reasoning, Path] = {"brief": _EXPERTS / "expert", "long": _EXPERTS / "expert_long"}
"""Where the results of the first stage go, to try other second stages from."""

_TAGS = [f"<{slash}{tag}>" for tag in ("think", "tool_call", "response", "user", "obs") for slash in ("", "/")]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_WORDS = r" ?[a-z]+|_[a-z]+|[A-Z][a-z]*|[0-9]|[^\sA-Za-z0-9_]+(?: [^\sA-Za-z0-9_<]+)*|_|\s"
"""Lower-case words take the space before them, capitalised words and digits do not: a name or number is the same
tokens in a sentence as after a quote in JSON, which is what makes copying learnable for a small model."""


def build_tokenizer(vocab_size: int = 1024, examples: int = 6000, seed: int = 7) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer on synthetic training dialogues. The protocol's tags are added tokens."""
    tags = re.compile("|".join(map(re.escape, _TAGS)))
    texts = []
    for example in SyntheticSource(num_train=examples, seed=seed).load("train"):
        prompt = compact_prompt(example.tools, example.history)
        texts += [tags.sub("\n", text) for text in (prompt.system, prompt.user, step_text(example.target))]
    texts += ["system", "user", "assistant"] * examples  # each becomes one token
    return trained_tokenizer(texts, _WORDS, _TAGS, _CHAT_TEMPLATE, vocab_size)


def trained_tokenizer(
    texts: Sequence[str], pieces: str, tags: Sequence[str], chat_template: str, vocab_size: int
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on texts.

    Args:
        texts: without tags and special tokens.
        pieces: pattern of what a text is split into before tokens are looked for.
        tags: added tokens.
        chat_template: of the tokenizer.
        vocab_size: tokens in all.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(tags),
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = chat_template
    fast.model_max_length = 1024
    return fast


def build_model(
    tokenizer: PreTrainedTokenizerFast, width: int = 128, layers: int = 4, positions: int = 1024
) -> Qwen3ForCausalLM:
    """A small Qwen3 with random weights (torch's global generator)."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 64,
        head_dim=32,
        tie_word_embeddings=True,
        max_position_embeddings=positions,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        use_cache=True,
    )
    return Qwen3ForCausalLM(config)


def train_stage(
    loaded: LoadedPolicy, renderer: PromptRenderer, source: SyntheticSource, batch_size: int, learning_rate: float
) -> None:
    """One pass over the source's training split; prompts count a fifth, so that the policy also learns to read."""
    optimizer = OptimizerSettings(learning_rate, "cosine", warmup_steps=100, final_share=0.02, betas=(0.9, 0.98))
    stage = WarmStart(source, optimizer, batch_size=batch_size, prompt_weight=0.2)
    prompts = [renderer.render(example) for example in source.load("train")]
    trainer = imitate(loaded, renderer, prompts, stage, {"accelerator": "cpu"}, drop_last=True)
    log.info("Stage done, last loss %.3f.", float(trainer.callback_metrics["train/loss"]))


def main() -> None:
    """Build the tokenizer, train both stages, write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reasoning", choices=get_args(Reasoning), default="brief", help="how much it thinks")
    parser.add_argument("--folder", type=Path, help="where to write it; default: where the project has it")
    parser.add_argument(
        "--expert-folder", type=Path, help="where to keep the first stage; default: in logs/tiny_policy"
    )
    parser.add_argument("--expert-steps", type=int, default=3600, help="optimizer steps on an expert's demonstrations")
    parser.add_argument("--habit-steps", type=int, default=150, help="optimizer steps on an imperfect demonstrator's")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--habit-learning-rate", type=float, default=6e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="start the first stage from this folder's weights and tokenizer")
    parser.add_argument("--expert", type=Path, help="start from this folder instead of the expert's demonstrations")
    args = parser.parse_args()
    folder = args.folder or FOLDERS[args.reasoning]
    expert_folder = args.expert_folder or _EXPERT_FOLDERS[args.reasoning]
    given = args.expert or args.start
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    started = time.monotonic()
    L.seed_everything(args.seed)

    if given is None:
        tokenizer = build_tokenizer()
        model = build_model(tokenizer, positions=_POSITIONS[args.reasoning])
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(given)
        model = Qwen3ForCausalLM.from_pretrained(given, max_position_embeddings=_POSITIONS[args.reasoning])
    loaded = LoadedPolicy(Policy(model), tokenizer, (int(tokenizer.eos_token_id),))
    renderer = PromptRenderer(tokenizer, layout="compact")
    log.info("%d weights, %d tokens in the vocabulary.", sum(p.numel() for p in model.parameters()), len(tokenizer))

    if args.expert is None:
        size = args.expert_steps * args.batch_size
        demonstrations = SyntheticSource(size, seed=1000 + args.seed, reasoning=args.reasoning)
        train_stage(loaded, renderer, demonstrations, args.batch_size, args.learning_rate)
        export(model, tokenizer, expert_folder)
    size = args.habit_steps * args.batch_size
    habits = SyntheticSource(size, seed=2000 + args.seed, habits=Habits(), reasoning=args.reasoning)
    train_stage(loaded, renderer, habits, args.batch_size, args.habit_learning_rate)
    export(model, tokenizer, folder)
    log.info("Written to %s after %.0f s.", folder, time.monotonic() - started)


if __name__ == "__main__":
    main()
