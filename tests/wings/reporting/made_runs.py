"""Run folders written by hand, as training leaves them."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

REGIONS = ("format", "tool_name", "tool_parameters", "reasoning", "response", "other")
NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \u2028 '\""


def step_metrics(index: int, lift: float) -> dict[str, float]:
    """Numbers of one rollout step; exact match is (index + 1) / 8 + lift."""
    return {
        "reward/total": index - 1.0,
        "reward/exact_match": (index + 1) / 8 + lift,
        "reward/format": 0.75,
        "reward/correctness": 0.5,
        "train/entropy": 0.5 / (index + 1),
        "response/tokens": 40.0 + index,
        "health/truncated_steps": float(index),
        **{f"entropy/{region}": 0.25 for region in REGIONS[:4]},
        **{f"curriculum/{region}": 1.0 for region in REGIONS},
        **{f"token_share/{region}": 0.25 if region in REGIONS[:4] else 0.0 for region in REGIONS},
        **{f"gradient_share/{region}": 0.25 if region in REGIONS[:4] else 0.0 for region in REGIONS},
    }


def validation(step: int, match: float) -> dict[str, Any]:
    values = {"val/exact_match": match, "val/correctness": match, "val/format": 1.0, "val/reward": 6 * match - 3}
    return {"event": "validation", "rollout_step": step, **values, "val/exact_match/ask": match}


def benchmark(step: int, score: float) -> dict[str, Any]:
    parts = {"single": score, "follow_up": score / 2, "refusal": 1.0}
    scores = {f"synthetic/{part}": value for part, value in parts.items()}
    others = {"synthetic/unparsed/single": 2.0, "synthetic/seconds": 3.0}
    return {"event": "benchmark", "rollout_step": step, "synthetic/overall": score, **scores, **others}


def write_run(
    folder: Path,
    method: str,
    seed: int,
    *,
    steps: int = 4,
    lift: float = 0.0,
    finished: bool = True,
    benchmarks: bool = True,
    alarm: str | None = None,
    more: list[dict[str, Any]] | None = None,
    **changes: object,
) -> Path:
    """A run from 0.25 to 0.75 + lift of exact match; `changes` are to its config, dots as double underscores."""
    run = folder / f"{method}-{seed}"
    run.mkdir(parents=True)
    config = OmegaConf.create(
        {
            "seed": seed,
            "algorithm": {"name": method, "weighting": {"alpha": 0.0 if method == "grpo" else 0.002}},
            "updates": {"rollout_steps": 4},
            "data": {"path": "/srv/ann/data/train.json", "seed": seed},
            "policy": {"path": "/srv/ann/project/models/tiny", "hub_id": None},
            "logger": {"wandb": {"api_key": f"geheim-{seed}", "save_dir": str(run)}},
            "paths": {"root_dir": "/srv/ann/project", "output_dir": str(run)},
        }
    )
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    OmegaConf.save(config, run / "config.yaml")

    final = 0.75 + lift
    events: list[dict[str, Any]] = [validation(0, 0.25)]
    events += [benchmark(0, 0.25)] if benchmarks else []
    for index in range(steps):
        if alarm is not None and index == 1:
            told = {"alarm": "truncated", "found": alarm, "advice": "raise it"}
            events.append({"event": "alarm", "rollout_step": index, **told})
        events.append({"event": "rollout_step", "rollout_step": index, **step_metrics(index, lift)})
    events += more or []
    if finished:
        events.append(validation(steps, final))
        events += [benchmark(steps, final)] if benchmarks else []
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if finished:
        summary = {
            "task": "train",
            "algorithm": method,
            "seed": seed,
            "rollout_steps": steps,
            "optimizer_steps": 2 * steps,
            "seconds": 246.0,
            "resumed_from": None,
            "best_checkpoint": {"monitor": "val/exact_match", "score": final, "path": "best.ckpt"},
            "start": _measured(validation(0, 0.25)) | (_measured(benchmark(0, 0.25)) if benchmarks else {}),
            "final": _measured(validation(steps, final)) | (_measured(benchmark(steps, final)) if benchmarks else {}),
            "command": f"python src/train.py hydra.run.dir={run} logger.wandb.api_key=geheim seed={seed}",
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
        }
        (run / "summary.json").write_text(json.dumps(summary))
    return run


def _measured(event: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in event.items() if "/" in key}
