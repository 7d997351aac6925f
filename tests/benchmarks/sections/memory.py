"""(d) Peak memory of an update, a rollout and a whole step: what each needs above its loaded model, on its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.benchmarks.bench import Bench, has_peer
from tests.benchmarks.measuring import Result
from tests.benchmarks.settings import Setting


def measure(bench: Bench) -> Iterator[Result]:
    for setting in bench.settings:
        for name, peaks in (
            ("rollout", _rollout(bench, setting)),
            ("update", _update(bench, setting)),
            ("whole step", _step(bench, setting)),
        ):
            details = {f"{form} MiB": peak / 2**20 for form, peak in peaks.items()}
            for other in [form for form in peaks if form != "ours"]:
                value = peaks["ours"] / peaks[other]
                case = f"{name}, {setting.case}"
                yield Result("memory", setting.name, case, f"peak over that of {other}", value, details=details)


def _rollout(bench: Bench, setting: Setting) -> dict[str, int]:
    work: dict[str, Any] = {
        "prompts": bench.prompts(setting, setting.prompt_tokens, setting.prompts),
        "completions": setting.completions,
        "new_tokens": setting.new_tokens,
    }
    jobs = {form: {"folder": bench.model(setting), "form": form} for form in ("ours", "generate")}
    return {form: _second(bench, "rollout", job, "memory", **work) for form, job in jobs.items()}


def _update(bench: Bench, setting: Setting) -> dict[str, int]:
    forms = {"ours": "packed", "padded rows": "padded"}
    peaks = {name: _second(bench, "update", bench.update_job(setting, form), "memory") for name, form in forms.items()}
    if has_peer("trl"):
        peaks["TRL"] = _second(bench, "trl", bench.trl_job(setting), "step", then="memory")
    return peaks


def _step(bench: Bench, setting: Setting) -> dict[str, int]:
    peaks = {"ours": _second(bench, "step", bench.step_job(setting), "step")}
    if has_peer("trl"):
        peaks["TRL"] = _second(bench, "trl", bench.trl_job(setting), "step")
    return peaks


def _second(bench: Bench, module: str, job: dict[str, Any], task: str, then: str | None = None, **work: Any) -> int:
    """Peak bytes of the second run in a process of its own; what is allocated once and kept is not counted."""
    with bench.start(module, job) as contestant:
        contestant.ask(task, **work)
        return int(contestant.ask(then or task, **work)["bytes"])
