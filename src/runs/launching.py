"""How the processes of a run were started. Reads the environment, starts nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from src.errors import ConfigError


def check_launch(environment: Mapping[str, str], overrides: Iterable[str]) -> None:
    """Refuse several processes that would each name the run folder after the second in which it started.

    Lightning tells the processes that it starts itself where the run folder is; torchrun and srun do not.

    Args:
        environment: of this process, `os.environ`.
        overrides: of Hydra's own settings, `HydraConfig.get().overrides.hydra`.

    Raises:
        ConfigError: started by torchrun or srun, without a folder.

    >>> check_launch({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8"}, ["hydra.run.dir=logs/train/runs/mine"])
    >>> check_launch({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, [])
    Traceback (most recent call last):
    src.errors.ConfigError: hydra.run.dir: srun started 8 processes, and each would name the run folder \
after its own clock. Give them one, hydra.run.dir=FOLDER, as docs/launch does.
    """
    started = {
        "torchrun": environment.get("WORLD_SIZE", "1") if "TORCHELASTIC_RUN_ID" in environment else "1",
        "srun": environment.get("SLURM_NTASKS", "1") if "SLURM_PROCID" in environment else "1",
    }
    given = {override.lstrip("+") for override in overrides}
    named = any(override.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for override in given)
    submitted = "hydra.mode=MULTIRUN" in given  # by submitit, whose tasks all get the config of the one that did
    for launcher, count in started.items():
        if int(count) > 1 and not named and not (launcher == "srun" and submitted):
            raise ConfigError(
                f"hydra.run.dir: {launcher} started {count} processes, and each would name the run folder after its "
                "own clock. Give them one, hydra.run.dir=FOLDER, as docs/launch does."
            )
