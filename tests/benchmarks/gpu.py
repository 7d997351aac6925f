"""`make bench-gpu`: what only a CUDA device can show. Asserts nothing.

    make bench-gpu ARGS="--json bench-gpu.json"
    python -m tests.benchmarks.gpu --device cpu --small      # that it runs, in seconds

Packed rows (FlexAttention on CUDA) give the log-probabilities of separate rows (SDPA); forward and backward take a
third of TRL's time and half of its memory, at 1,500-token prompts, eight completions of 256 tokens and a random model
of Qwen3-0.6B's size, in bfloat16 autocast over float32 weights on both sides.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.__main__ import environment
from tests.benchmarks.bench import Bench, has_peer
from tests.benchmarks.measuring import Result, take_turns, times_as_fast
from tests.benchmarks.report import dump
from tests.benchmarks.sections.step import Steps
from tests.benchmarks.sections.update import timed
from tests.benchmarks.serving import Contestant
from tests.benchmarks.settings import QWEN3, SMALL, Setting

AGREEMENT_BAR = 1e-3
TIME_BAR = 3.0
MEMORY_BAR = 0.5
_ROWS = ("packed", "separate")


def agreement(bench: Bench, setting: Setting, where: dict[str, Any]) -> Iterator[Result]:
    """Gaps between the log-probabilities of packed rows and of separate rows, in bfloat16 and in float32."""
    jobs = [
        (bf16, [bench.update_job(setting, "packed", **{**where, "bf16": bf16, "rows": rows}) for rows in _ROWS])
        for bf16 in (True, False)
    ]
    with bench.start("update", jobs[0][1][0]) as contestant:
        found = {bf16: [_logprobs(contestant, job) for job in pair] for bf16, pair in jobs}
    for bf16, (packed, separate) in found.items():
        gaps = (packed - separate).abs()
        yield Result(
            "agreement",
            setting.name,
            f"{'bf16' if bf16 else 'fp32'}, {setting.case}",
            "mean gap between packed and separate",
            float(gaps.mean()),
            unit=" nats",
            bar=AGREEMENT_BAR,
            at_most=True,
            details={"largest": float(gaps.max())},
        )


def _logprobs(contestant: Contestant, job: dict[str, Any]) -> torch.Tensor:
    contestant.ask("prepare", **job)
    return torch.tensor(contestant.ask("logprobs")["logprobs"])


def against_trl(bench: Bench, setting: Setting, where: dict[str, Any]) -> Iterator[Result]:
    """Time and peak memory of forward and backward."""
    with (
        bench.start("update", bench.update_job(setting, "packed", **where)) as ours,
        bench.start("trl", bench.trl_job(setting, **where)) as trl,
    ):
        Steps("TRL", trl, setting)(0)  # a rollout of the right size, whose completions the updates are of
        seconds = take_turns({"ours": timed(ours), "TRL": timed(trl)}, bench.repeats)
        peaks = {name: float(one.ask("memory")["bytes"]) for name, one in (("ours", ours), ("TRL", trl))}
    yield from times_as_fast("update", setting.name, setting.case, seconds, {"TRL": TIME_BAR})
    yield Result(
        "memory",
        setting.name,
        f"update, {setting.case}",
        "peak over that of TRL",
        peaks["ours"] / peaks["TRL"],
        bar=MEMORY_BAR,
        at_most=True,
        details={f"{name} MiB": peak / 2**20 for name, peak in peaks.items()},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="a small model and short prompts")
    parser.add_argument("--repeats", type=int, default=5, help="counted rounds")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is none. --device cpu --small shows that the measurements run.")
    setting = SMALL if args.small else QWEN3
    where = {"device": args.device, "bf16": True}
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), repeats=args.repeats, settings=(setting,))
        sections = [agreement, against_trl] if has_peer("trl") else [agreement]
        for section in sections:
            for result in section(bench, setting, where):
                results.append(result)
                print(result, flush=True)
    if args.json:
        device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
        args.json.write_text(dump(environment() | bench.versions | {"device": device}, results))


if __name__ == "__main__":
    main()
