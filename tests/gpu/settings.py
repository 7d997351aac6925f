"""What a proof runs on and with, and what a section hands back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.measuring import Result

Found = Result | str
"""What a section yields: a number, or a note such as what was left out and why."""


class SkippedError(Exception):
    """A section that cannot run here; the message says why."""


@dataclass(frozen=True)
class Proof:
    """One proof.

    Attributes:
        device: `cuda` or `cpu`.
        small: shapes that two CPU cores compute in minutes.
        folder: for what sections write.
        weights: folder of SmolLM2's weights or of its GGUF file; None: the installed package's, if there is one.
        rlla: file of real prompts; None: the generated corpus.
        api_bank: folder of API-Bank's test set; None: it is left out.
    """

    device: str
    small: bool
    folder: Path
    weights: Path | None = None
    rlla: Path | None = None
    api_bank: Path | None = None

    @property
    def cuda(self) -> bool:
        """Whether it runs on CUDA."""
        return self.device == "cuda"

    @property
    def where(self) -> torch.device:
        """The device."""
        return torch.device(self.device)

    @property
    def name(self) -> str:
        """Of the device, as results name it."""
        return torch.cuda.get_device_name() if self.cuda else "cpu"

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def result(self, section: str, case: str, quantity: str, value: float, **more: Any) -> Result:
        """A number of this device; `more` as of `Result`."""
        return Result(section, self.name, case, quantity, float(value), **more)
