"""What an engine in the trainer's process must not change: random state, threads, environment."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Put back the random states and the number of threads, and torch's way to set it.

    vLLM seeds all generators when it starts, draws from them at every step, and leaves torch with one thread (on a CPU
    also without `torch.set_num_threads`): the trainer would draw other numbers than with another engine, and compute
    slowly.
    """
    python, numpy = random.getstate(), np.random.get_state()
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_num_threads = set_num_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@contextmanager
def launcher_variables() -> Iterator[None]:
    """`RANK` and `LOCAL_RANK` in the environment as torchrun sets them, the latter the trainer's device.

    vLLM reads its place from them. Lightning's own launcher sets one, SLURM neither, and a task that sees one device
    only has another local rank than device.
    """
    on_device = torch.accelerator.is_available()
    local = torch.accelerator.current_device_index() if on_device else os.environ.get("LOCAL_RANK", "0")
    names = {"RANK": str(dist.get_rank()), "LOCAL_RANK": str(local)}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
