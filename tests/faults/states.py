"""What a run leaves behind that a run which was killed and resumed must have left too, to the last bit."""

import json
from pathlib import Path
from typing import Any

import torch

from src.models.checkpoints.reading import Shards

LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"
KEPT = ("rollout_step", "global_step", "lr_schedulers", "scores", "random_states")


def differences(expected: Path, found: Path) -> list[str]:
    """What of the second run folder is not as in the first; times left out."""
    problems = [
        f"{part} {key}"
        for part, (one, other) in {
            "last.ckpt": (_tensors(expected / LAST), _tensors(found / LAST)),
            "best.ckpt": (_tensors(expected / BEST), _tensors(found / BEST)),
            "state": (_state(expected / LAST), _state(found / LAST)),
        }.items()
        for key in sorted(one.keys() | other.keys())
        if key not in one or key not in other or not _same(one[key], other[key])
    ]
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        one, other = _lines(expected / name), _lines(found / name)
        if len(one) != len(other):
            problems.append(f"{name}: {len(other)} lines instead of {len(one)}")
        problems += [
            f"{name}, line {number}: {sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))}"
            for number, (a, b) in enumerate(zip(one, other, strict=False), 1)
            if a != b
        ]
    return problems


def steps_done(folder: Path) -> int:
    """Rollout steps that have a whole line, some perhaps twice after a kill."""
    file = folder / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    found = [json.loads(line) for line in lines if line.endswith(b"}\n")]
    return max((line["rollout_step"] + 1 for line in found if line["event"] == "rollout_step"), default=0)


def _lines(file: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    timed = ("time/", "synthetic/seconds")
    return [{key: value for key, value in line.items() if not key.startswith(timed)} for line in lines]


def _tensors(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    if path.is_file():
        content = torch.load(path, weights_only=True)
        return {"model": content["state_dict"], "optimizer": content["optimizer_states"]}
    tensors = {}
    for key in ("state_dict", "optimizer_0"):
        shards = Shards(path, key)
        part = {name: torch.empty(shape) for name, shape in shards.shapes.items()}
        shards.copy_into(part)
        tensors |= {f"{key}/{name}": tensor for name, tensor in part.items()}
    return tensors


def _state(path: Path) -> dict[str, Any]:
    content = torch.load(path if path.is_file() else path / "meta.pt", weights_only=True)
    (best,) = (value for key, value in content["callbacks"].items() if "RolloutCheckpoint" in key)
    state = {key: content[key] for key in KEPT}
    state |= {key: content["callbacks"][key] for key in ("Curriculum", "Health")}
    return state | {"best": (best["best_model_score"], Path(best["best_model_path"]).name)}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)
