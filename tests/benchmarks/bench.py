"""One run of the benchmarks: its settings, the model folders, and the jobs that sections give to contestants."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.serving import ROOT, Contestant
from tests.benchmarks.settings import SETTINGS, Setting, as_lists, prompt_ids

PYTHON = {"trl": ROOT / ".venv-trl" / "bin" / "python", "vllm": ROOT / ".venv-vllm" / "bin" / "python"}
"""Environments of peers, made by `make bench-peers`."""

_PACKAGE = "tests.benchmarks.contestants"


@dataclass
class Bench:
    """What sections need to know.

    Attributes:
        folder: for model folders, made when they are first asked for.
        repeats: counted rounds.
        settings: to be measured.
        data: rlla file to take prompts from; None: the synthetic corpus.
        quick: a look of minutes: fewer points, small head.
        images: where pictures go; None: nowhere.
        versions: of contestants, as they told.
    """

    folder: Path
    repeats: int = 5
    settings: tuple[Setting, ...] = tuple(SETTINGS.values())
    data: Path | None = None
    quick: bool = False
    images: Path | None = None
    versions: dict[str, Any] = field(default_factory=dict)

    def model(self, setting: Setting) -> str:
        """The setting's model folder."""
        folder = self.folder / setting.name.replace(" ", "_")
        if not folder.exists():
            setting.write(folder)
        return str(folder)

    def prompts(self, setting: Setting, tokens: int, count: int, seed: int = 0) -> list[list[int]]:
        """Prompts for the setting's model."""
        return as_lists(prompt_ids(Path(self.model(setting)), self.data, tokens, count, seed))

    def update_job(self, setting: Setting, form: str, **changes: Any) -> dict[str, Any]:
        """Of `contestants.update`, at the setting's shape."""
        return {
            "form": form,
            "folder": self.model(setting),
            "prompts": self.prompts(setting, setting.prompt_tokens, setting.prompts),
            "completions": setting.completions,
            "new_tokens": setting.new_tokens,
            "max_row_tokens": setting.max_row_tokens,
            "padded_rows": setting.padded_rows,
            **changes,
        }

    def step_job(self, setting: Setting, **changes: Any) -> dict[str, Any]:
        """Of `contestants.step` and `contestants.trl`, at the setting's shape."""
        return {
            "folder": self.model(setting),
            "experiment": setting.experiment,
            "data": None if self.data is None else str(self.data),
            "prompt_tokens": setting.prompt_tokens,
            "prompts": setting.prompts,
            "completions": setting.completions,
            "new_tokens": setting.new_tokens,
            "max_row_tokens": setting.max_row_tokens,
            "trl_rows": setting.trl_rows,
            **changes,
        }

    def trl_job(self, setting: Setting, **changes: Any) -> dict[str, Any]:
        """The same with the prompts themselves, as TRL's environment lacks the project."""
        prompts = self.prompts(setting, setting.prompt_tokens, setting.prompts)
        return {**self.step_job(setting), "prompt_ids": prompts, "checkpointing": False, **changes}

    def start(self, module: str, job: dict[str, Any]) -> Contestant:
        """A contestant that has loaded its job."""
        contestant = Contestant(f"{_PACKAGE}.{module}", job, PYTHON.get(module))
        self.versions |= {key: value for key, value in contestant.about.items() if key != "threads"}
        return contestant


def has_peer(name: str) -> bool:
    """Whether the environment of a peer is there."""
    return PYTHON[name].exists()
