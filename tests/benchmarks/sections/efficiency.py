"""(f) How much of the machine's matrix-product peak an update reaches, in useful operations (`flops`).

In bfloat16 too where the processor has instructions for it; without them a product takes several times that of float32.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch

from tests.benchmarks.bench import Bench
from tests.benchmarks.measuring import Result

BARS = {"fp32": 0.65, "bf16": 0.5}
"""For SmolLM2."""


def measure(bench: Bench) -> Iterator[Result]:
    for setting in bench.settings:
        for precision in BARS if torch.cpu._is_avx512_bf16_supported() else ("fp32",):
            bf16 = precision == "bf16"
            with bench.start("update", bench.update_job(setting, "packed", bf16=bf16)) as ours:
                flops = float(ours.ask("flops")["flops"])
                ours.ask("update")
                shares, speeds, peaks = [], [], []
                for _ in range(bench.repeats):
                    peaks.append(float(ours.ask("product_peak", bf16=bf16)["flops_per_second"]))
                    speeds.append(flops / float(ours.ask("update")["seconds"]))
            shares = [speed / max(peaks) for speed in speeds]
            yield Result(
                "efficiency",
                setting.name,
                f"{precision}, {setting.case}",
                "share of the matrix-product peak",
                statistics.median(shares),
                min(shares),
                max(shares),
                bar=BARS[precision] if setting.name == "smollm2" else None,
                details={
                    "useful GFLOP": flops / 1e9,
                    "GFLOP/s": statistics.median(speeds) / 1e9,
                    "peak GFLOP/s": max(peaks) / 1e9,
                },
            )
