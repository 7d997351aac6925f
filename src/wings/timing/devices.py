"""Ceilings of accelerators, from their data sheets: dense products and memory, and the links between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from src.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator.

    Attributes:
        name: as `preflight.device` has it.
        half: operations a second of dense bfloat16 products.
        single: of float32 products without TF32, PyTorch's default.
        bandwidth: bytes a second of its memory.
        link: bytes a second that it sends to the others of its node.
        memory: GiB, as PyTorch finds them: less than the name says.
    """

    name: str
    half: float
    single: float
    bandwidth: float
    link: float
    memory: float


DEVICES = {
    device.name: device
    for device in (
        Device("h100", 989e12, 67e12, 3.35e12, 450e9, 79),
        Device("h200", 989e12, 67e12, 4.8e12, 450e9, 139),
        Device("a100", 312e12, 19.5e12, 2.04e12, 300e9, 79),
        Device("l40s", 362e12, 91.6e12, 0.864e12, 32e9, 44),
    )
}
"""SXM boards of 80 GB where there are several; L40S has PCIe in place of NVLink."""


def named_device(name: str) -> Device:
    """The device of `preflight.device`.

    Raises:
        ConfigError: it is not in the table.
    """
    if name.lower() not in DEVICES:
        raise ConfigError(f"preflight.device: expected one of {list(DEVICES)} or null, found '{name}'.")
    return DEVICES[name.lower()]


def this_device() -> Device | None:
    """This machine's first GPU; None if there is none, or it is not in the table."""
    name = torch.cuda.get_device_name(0).lower() if torch.cuda.is_available() else ""
    return next((device for device in DEVICES.values() if device.name in name), None)
