"""Which checkpoint a run goes on from: what `ckpt_path` stands for. Reads run folders, changes nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from src.errors import ConfigError
from src.models.checkpoints.reading import DamagedCheckpointError, Progress, checkpoint_progress, is_sharded
from src.models.checkpoints.writing import PARTIAL, REPLACED, check_whole
from src.models.loading.sharding import is_sharded as trains_sharded

log = logging.getLogger(__name__)

AUTO = "auto"
_ENDINGS = (".ckpt", f".ckpt{PARTIAL}", f".ckpt{REPLACED}")


class Found(NamedTuple):
    """A checkpoint that is whole, and how far its run was."""

    path: Path
    progress: Progress


class _Candidate(NamedTuple):
    path: Path
    progress: Progress | None
    problem: str


def resume_from(config: DictConfig) -> Found | None:
    """What `ckpt_path` stands for: a checkpoint or run folder, `auto`, or null for a new run.

    `auto` is the newest checkpoint that is whole, by rollout step, in `checkpoints/` of this run folder; without one it
    is a new run.

    Raises:
        ConfigError: no such checkpoint, one that is damaged, or shards for a strategy that does not shard; or for
            `auto`, checkpoints none of which is whole.
    """
    wanted = config.ckpt_path
    folder = Path(config.paths.output_dir)
    if wanted is None:
        return None
    found = newest_whole(folder / "checkpoints") if wanted == AUTO else _named(Path(wanted).expanduser())
    if found is not None and found.path.is_dir() and not trains_sharded(config.trainer):
        raise ConfigError(
            f"ckpt_path='{found.path}': a folder of shards, which only a sharded strategy resumes, on any number of "
            "ranks. Set trainer=fsdp, or trainer=fsdp_cpu without GPUs."
        )
    if wanted != AUTO:
        return found
    if found is None:
        log.info("ckpt_path=auto: no checkpoint in '%s': a new run.", folder)
    else:
        log.info("ckpt_path=auto: going on from '%s', %d rollout steps done.", found.path, found.progress.rollout_steps)
    return found


def newest_whole(folder: Path) -> Found | None:
    """The checkpoint of most rollout steps among those in a folder that are whole; None if there is none at all.

    One that was being written or replaced when its run was killed counts if it is whole. Those that are newer and not
    whole are named in one warning.

    Raises:
        ConfigError: there are checkpoints under their final names, and none is whole.
    """
    damaged: list[_Candidate] = []
    for candidate in _candidates(folder):
        problem = candidate.problem or _problem(candidate.path)
        if problem or candidate.progress is None:
            damaged.append(candidate._replace(problem=problem))
            continue
        if damaged:
            log.warning("%s. Going on from the newest that is whole, '%s'.", _told(damaged), candidate.path)
        return Found(candidate.path, candidate.progress)
    if any(candidate.path.suffix == ".ckpt" for candidate in damaged):
        raise ConfigError(
            f"ckpt_path: expected a whole checkpoint in '{folder}', found none: {_told(damaged)}. Remove them to start "
            "anew there, or give another with ckpt_path=…"
        )
    if damaged:
        log.warning("%s. It was the first of this run.", _told(damaged))
    return None


def _named(path: Path) -> Found:
    if (path / "checkpoints").is_dir():
        found = newest_whole(path / "checkpoints")
        if found is None:
            raise ConfigError(f"ckpt_path='{path}': expected a run folder with a checkpoint, found none.")
        return found
    if not path.exists() or (path.is_dir() and not is_sharded(path)):
        kind = "a folder without .metadata" if path.is_dir() else "no such file or folder"
        raise ConfigError(f"ckpt_path='{path}': expected a checkpoint, a run folder, 'auto' or null, found {kind}.")
    problem = _problem(path)
    if not problem:
        try:
            return Found(path, checkpoint_progress(path))
        except ValueError as error:
            raise ConfigError(f"ckpt_path: {error}") from error
    others = [candidate for candidate in _candidates(path.parent) if candidate.path != path and not candidate.problem]
    other = next((candidate.path for candidate in others if not _problem(candidate.path)), None)
    advice = "None beside it is whole." if other is None else f"The newest whole one beside it: ckpt_path={other}"
    raise ConfigError(f"ckpt_path='{path}' is damaged: {problem}. {advice}")


def _candidates(folder: Path) -> list[_Candidate]:
    """All checkpoints of a folder, unreadable ones first, then by rollout step from the newest."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.name.endswith(_ENDINGS):
            continue
        try:
            found.append(_Candidate(path, checkpoint_progress(path), ""))
        except ValueError:
            found.append(_Candidate(path, None, _problem(path) or "it is not of a training run"))
    newest = sorted(found, key=lambda one: one.path.name != "last.ckpt")
    return sorted(newest, key=lambda one: one.progress.rollout_steps if one.progress else float("inf"), reverse=True)


def _problem(path: Path) -> str:
    try:
        check_whole(path)
    except DamagedCheckpointError as error:
        return str(error)
    return ""


def _told(damaged: list[_Candidate]) -> str:
    return "; ".join(f"checkpoint '{one.path}' is damaged: {one.problem}" for one in damaged)
