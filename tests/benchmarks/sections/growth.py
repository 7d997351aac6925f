"""(g) How an update grows with prompt, responses, group and vocabulary: ours and the padded form, tiny architecture."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.bench import Bench
from tests.benchmarks.measuring import Result, ratios, take_turns
from tests.benchmarks.sections.update import timed

CENTRE = {"P": 1000, "R": 64, "G": 8, "V": 4096}
AXES = {
    "P": (256, 512, 1024, 2048, 4096),
    "R": (64, 128, 256, 512, 1024),
    "G": (2, 4, 8, 16, 32),
    "V": (4096, 16_384, 49_152, 150_000),
}
"""One is varied at a time."""
NAMES = {"P": "prompt length", "R": "response length", "G": "completions of a prompt", "V": "vocabulary"}
SHARE = 0.65
"""Of the token saving, to be reached everywhere."""
_LOGITS_BYTES = 1 << 30


def token_saving(shape: dict[str, int]) -> float:
    """Tokens of the padded rows over those of the packed row.

    >>> round(token_saving({"P": 1000, "R": 64, "G": 8}), 2)
    5.63
    """
    return shape["G"] * (shape["P"] + shape["R"]) / (shape["P"] + shape["G"] * shape["R"])


def measure(bench: Bench) -> Iterator[Result]:
    results = []
    repeats = 1 if bench.quick else min(bench.repeats, 3)
    with bench.start("update", _job(CENTRE, "packed")) as ours, bench.start("update", _job(CENTRE, "padded")) as padded:
        for shape in shapes(2 if bench.quick else None):
            for contestant, form in ((ours, "packed"), (padded, "padded")):
                contestant.ask("prepare", **_job(shape, form))
            seconds = take_turns({"ours": timed(ours), "padded rows": timed(padded)}, repeats)
            results.append(result_of(shape, seconds))
            yield results[-1]
    if bench.images is not None:
        draw(results, bench.images / "growth.png")


def shapes(points: int | None) -> list[dict[str, int]]:
    """All that are measured, each once; the first `points` of each axis if not None."""
    every = [CENTRE | {axis: value} for axis, values in AXES.items() for value in values[:points]]
    return [shape for index, shape in enumerate(every) if shape not in every[:index]]


def _job(shape: dict[str, int], form: str) -> dict[str, Any]:
    rows = max(1, min(shape["G"], 8, _LOGITS_BYTES // (4 * shape["V"] * (shape["P"] + shape["R"]))))
    return {
        "form": form,
        "architecture": {"vocabulary": shape["V"]},
        "prompt_tokens": shape["P"],
        "completions": shape["G"],
        "new_tokens": shape["R"],
        "max_row_tokens": 1 << 20,
        "padded_rows": rows,
    }


def result_of(shape: dict[str, int], seconds: dict[str, list[float]]) -> Result:
    saving = token_saving(shape)
    return Result(
        "growth",
        "tiny",
        " ".join(f"{axis}={value}" for axis, value in shape.items()),
        "times as fast as padded rows",
        *ratios(seconds["padded rows"], seconds["ours"]),
        bar=SHARE * saving,
        details={**{f"{name} s": statistics.median(taken) for name, taken in seconds.items()}, "token saving": saving},
    )


def draw(results: list[Result], path: Path) -> None:
    """Seconds of both forms along each axis, one panel an axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(AXES), figsize=(15, 3.6), layout="constrained", sharey=True)
    for panel, axis in zip(panels, AXES, strict=True):
        points = []
        for result in results:
            shape = {key: int(value) for key, value in (item.split("=") for item in result.case.split())}
            if all(shape[other] == CENTRE[other] for other in CENTRE if other != axis):
                points.append((shape[axis], result.details))
        points.sort(key=lambda point: point[0])
        x = [value for value, _ in points]
        for form, marker in (("padded rows", "s"), ("ours", "o")):
            panel.plot(x, [details[f"{form} s"] for _, details in points], marker=marker, label=form)
        panel.set(xscale="log", yscale="log", xlabel=NAMES[axis])
        panel.set_xticks(AXES[axis], [f"{tick:,}" for tick in AXES[axis]])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("seconds an update")
    panels[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
