"""Where the time goes, operator by operator, in one update or one rollout of a setting.

python -m tests.benchmarks.profiling update --setting smollm2
python -m tests.benchmarks.profiling rollout --prompt-tokens 600 --rows 25
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from src.models.loading.loading import PolicyConfig, load_policy
from src.rollout.native.engine import NativeEngine
from tests.benchmarks.bench import Bench
from tests.benchmarks.contestants.rollout import native
from tests.benchmarks.contestants.update import prepare
from tests.benchmarks.settings import SETTINGS, Setting


def table(run: Callable[[], object], rows: int) -> str:
    """Operators by their own CPU time, in the second run."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        run()
    return str(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=50))


def action(what: str, bench: Bench, setting: Setting, bf16: bool) -> Callable[[], object]:
    """The update, or the rollout of as many tokens."""
    if what == "update":
        return prepare(**bench.update_job(setting, "packed", bf16=bf16)).update
    loaded = load_policy(PolicyConfig(path=bench.model(setting), dtype="float32"))
    engine = NativeEngine(loaded.policy.model)
    prompts = bench.prompts(setting, setting.prompt_tokens, setting.prompts)
    return lambda: native(engine, prompts, setting.completions, setting.new_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("update", "rollout"))
    parser.add_argument("--setting", choices=list(SETTINGS), default="tiny")
    parser.add_argument("--prompt-tokens", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--bf16", action="store_true", help="of the update: autocast")
    parser.add_argument("--rows", type=int, default=15, help="operators to show")
    args = parser.parse_args()
    setting = replace(
        SETTINGS[args.setting],
        prompt_tokens=args.prompt_tokens,
        prompts=args.prompts,
        completions=args.completions,
        new_tokens=args.new_tokens,
    )
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        print(table(action(args.what, bench, setting, args.bf16), args.rows))


if __name__ == "__main__":
    main()
