"""Inspect: a run's samples in the terminal, token by token. `python src/inspect_rollouts.py run=FOLDER step=last`."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import hydra
import rootutils

rootutils.setup_root(__file__, indicator="pyproject.toml", pythonpath=True)

from omegaconf import DictConfig, OmegaConf  # noqa: E402
from rich.console import Console  # noqa: E402

from src.config.checks import check_keys  # noqa: E402
from src.config.command_line import entry_point  # noqa: E402
from src.wings.reporting.inspector.comparing import Failure  # noqa: E402
from src.wings.reporting.inspector.rollout_records import COLUMNS, GroupPlace, InspectorError, LoggedGroup, RolloutFile  # noqa: E402
from src.wings.reporting.inspector.section import InspectedRun, section, standalone_page  # noqa: E402
from src.wings.reporting.inspector.terminal import show_group  # noqa: E402

log = logging.getLogger(__name__)

_PIPE_WIDTH = 160


def inspect_rollouts(config: DictConfig) -> None:
    """Print the group that the config names, or write a page of all.

    Raises:
        InspectorError: no run folder, no such step, group or completion, or a setting with no such choice.
    """
    check_keys(config, "inspect.yaml")
    if OmegaConf.is_missing(config, "run"):
        raise InspectorError("run: expected a run folder, found nothing. E.g. run=logs/train/runs/<time>")
    _check_choice("numbers", config.numbers, COLUMNS)
    _check_choice("kind", config.kind, [kind.value for kind in Failure])
    folder = Path(config.run).expanduser()
    file = RolloutFile(folder)
    if config.html is not None:
        write_page(folder, Path(config.html).expanduser())
        return
    (group,) = file.read([place_of(file, config.step, config.group)])
    shown = _selected(group, config)
    show_group(_console(config.width), shown, numbers=config.numbers, prompt=config.prompt)


def write_page(folder: Path, path: Path) -> None:
    """Write a page of a run's samples."""
    saved = folder / "config.yaml"
    method = OmegaConf.select(OmegaConf.load(saved), "algorithm.name") if saved.is_file() else None
    run = InspectedRun(folder.resolve().name, folder, str(method or "unknown"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(standalone_page(section([run]), f"Rollouts of {run.name}"), encoding="utf-8")
    log.info("'%s' has the samples of '%s'.", path, folder)


def place_of(file: RolloutFile, step: str | int, group: int) -> GroupPlace:
    """Where the group is.

    Args:
        file: of the run.
        step: `first`, `last` or a rollout step.
        group: its number among those of that step.

    Raises:
        InspectorError: no samples of that step, or fewer groups.
    """
    steps = file.steps
    wanted = {"first": steps[0], "last": steps[-1]}.get(str(step), step)
    places = [place for place in file.places if place.rollout_step == wanted]
    if not places:
        raise InspectorError(
            f"step: expected first, last or a rollout step with samples, found {step!r}. '{file.path}' has "
            f"{', '.join(map(str, steps))}."
        )
    if not 0 <= group < len(places):
        raise InspectorError(f"group: expected 0 to {len(places) - 1} at rollout step {wanted}, found {group}.")
    return places[group]


def _selected(group: LoggedGroup, config: DictConfig) -> LoggedGroup:
    """The group with the completions that were asked for."""
    completions = group.completions
    if config.completions is not None:
        wanted = [config.completions] if isinstance(config.completions, int) else list(config.completions)
        known = {completion.index: completion for completion in completions}
        if unknown := [index for index in wanted if index not in known]:
            raise InspectorError(f"completions: expected some of {list(known)}, found {unknown}.")
        completions = tuple(known[index] for index in wanted)
    if config.kind is not None:
        completions = tuple(one for one in completions if group.failure(one).value == config.kind)
    return replace(group, completions=completions)


def _check_choice(key: str, value: object, options: Sequence[str]) -> None:
    if value is not None and value not in options:
        raise InspectorError(f"{key}: expected null or one of {list(options)}, found {value!r}.")


def _console(width: int | None) -> Console:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack characters
    if width is None and not sys.stdout.isatty():
        width = _PIPE_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)


@hydra.main(version_base="1.3", config_path="../configs", config_name="inspect.yaml")
def main(config: DictConfig) -> None:
    """Command line."""
    inspect_rollouts(config)


if __name__ == "__main__":
    with entry_point("inspect.yaml"):
        main()
