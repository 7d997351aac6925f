r"""Makes the tiny policy that plays episodes: `tiny_native`, taught further on plays of the generated worlds.

First on right plays, until it looks up what it needs and says what it found; then shortly on careless ones, which stop
after the first call, make up ids and values, give up at an error, or call where nothing fits:

    python -m src.wings.tiny.make_episodes

That is 1,400 steps of about 0.5 s on two cores.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import lightning as L
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from src.environments.generated.source import GeneratedSource, Habits
from src.wings.tiny import make_native
from src.wings.tiny.make_native import Stage, Trainer

FOLDER = make_native.FOLDER.with_name("tiny_episodes")
"""Where the policy lives in the project."""

_EXPERT = Path(__file__).parents[3] / "logs" / "tiny_policy" / "expert_episodes"
"""Where the result of the first stage goes."""


def main() -> None:
    """Train both stages and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write it")
    parser.add_argument("--expert-folder", type=Path, default=_EXPERT, help="where to keep the first stage")
    parser.add_argument("--start", type=Path, default=make_native.FOLDER, help="weights and tokenizer to start from")
    parser.add_argument("--expert-steps", type=int, default=1200, help="steps on right plays")
    parser.add_argument("--habit-steps", type=int, default=200, help="steps on careless ones")
    parser.add_argument("--batch-size", type=int, default=16, help="answers of a step")
    parser.add_argument("--rate", type=float, default=0.015)
    parser.add_argument("--habit-rate", type=float, default=0.01)
    parser.add_argument("--prompts", type=int, default=100, help="answers of each validation split")
    parser.add_argument("--every", type=int, default=200, help="steps between two looks at them")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    L.seed_everything(args.seed)

    model = Qwen3ForCausalLM.from_pretrained(args.start)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start)
    trainer = Trainer(model, tokenizer, GeneratedSource(1, args.prompts, seed=1))
    stages = (
        (args.expert_steps, args.rate, None, args.expert_folder),
        (args.habit_steps, args.habit_rate, Habits(), args.folder),
    )
    for number, (steps, rate, habits, folder) in enumerate(stages):
        plays = GeneratedSource(seed=3000 + 1000 * number + args.seed, habits=habits).stream("train")
        trainer.run(Stage(steps, args.batch_size, rate, every=args.every), plays, folder)


if __name__ == "__main__":
    main()
