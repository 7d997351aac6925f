"""Which ways of starting several processes agree on a run folder; and the scripts that start them."""

import os
import subprocess

import pytest

from src.errors import ConfigError
from src.runs.launching import check_launch
from tests.conftest import ROOT

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}
SRUN = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(
    ("environment", "overrides"),
    [
        ({}, []),
        ({"SLURM_NTASKS": "8"}, []),  # in a job, but not started by srun
        ({**TORCHRUN, "WORLD_SIZE": "1"}, []),
        (TORCHRUN, ["hydra.run.dir=x"]),
        (TORCHRUN, ["hydra.mode=MULTIRUN", "hydra.sweep.dir=x"]),
        (SRUN, ["++hydra.run.dir=x"]),
        (SRUN, ["hydra.mode=MULTIRUN"]),  # submitit
    ],
)
def test_one_folder(environment, overrides):
    check_launch(environment, overrides)


@pytest.mark.parametrize(
    ("environment", "overrides"), [(TORCHRUN, []), (SRUN, ["hydra.verbose=true"]), (TORCHRUN, ["hydra.mode=MULTIRUN"])]
)
def test_a_folder_a_process(environment, overrides):
    with pytest.raises(ConfigError, match=r"hydra\.run\.dir: (torchrun|srun) started 2 processes"):
        check_launch(environment, overrides)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"NNODES": "2"}, "RUN_FOLDER: expected a folder"), ({"NPROC_PER_NODE": "0"}, "NPROC_PER_NODE: found no GPU")],
)
def test_torchrun_script_refuses_what_cannot_run(settings, message):
    command = ["bash", ROOT / "docs/launch/torchrun.sh"]
    done = subprocess.run(command, env={**os.environ, "PYTHON": "true", **settings}, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr


def test_torchrun_script_resumes_and_hands_arguments_on(tmp_path):
    """`echo` in place of Python shows what would run."""
    settings = {
        "NPROC_PER_NODE": "4",
        "NNODES": "2",
        "NODE_RANK": "1",
        "MASTER_ADDR": "n0",
        "RUN_FOLDER": str(tmp_path),
    }
    command = ["bash", ROOT / "docs/launch/torchrun.sh", "trainer=fsdp", "seed=3"]
    shown = subprocess.run(
        command, env={**os.environ, "PYTHON": "/bin/echo", **settings}, capture_output=True, text=True
    )
    assert shown.stdout.split() == [
        "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", "1", "--nproc-per-node", "4",
        "--master-addr", "n0", "--master-port", "29500", "src/train.py",
        "ckpt_path=auto", "trainer=fsdp", "seed=3",
        f"hydra.run.dir={tmp_path}", "++trainer.devices=4", "++trainer.num_nodes=2",
    ]  # fmt: skip


@pytest.mark.parametrize(("status", "again"), [(75, ["scontrol requeue 77"]), (0, [])])
def test_slurm_script_hands_the_signal_on_and_queues_itself_again_unless_the_run_is_finished(status, again, tmp_path):
    """A job as SLURM would start it, with a `scontrol` that says how it was called and an `srun` that gets USR1.

    The signal comes as early as it can: before the script has had a turn after the start of `srun`.
    """
    srun = f'trap "echo saved; exit {status}" USR1\necho srun "$@"\nkill -USR1 $PPID\nwhile :; do sleep 0.1; done\n'
    for name, told in (("srun", srun), ("scontrol", 'echo scontrol "$@"\n')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{told}")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "77", "SLURM_CPUS_PER_TASK": "4", "SLURM_NNODES": "2",
           "SLURM_NTASKS_PER_NODE": "8", "PYTHON": "python3"}  # fmt: skip
    environment = {**os.environ, **job, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", ROOT / "docs/launch/slurm.sbatch", "trainer=fsdp"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    shown = done.stdout.splitlines()
    python = next(word for word in shown[0].split() if word.endswith("python") or word == "python3")
    assert shown[0].split(python)[1].split() == [
        "src/train.py", "ckpt_path=auto", "trainer=fsdp", "hydra.run.dir=logs/train/runs/slurm-77",
        "++trainer.devices=8", "++trainer.num_nodes=2",
    ]  # fmt: skip
    assert "--kill-on-bad-exit=1 --cpus-per-task=4" in shown[0]
    assert shown[1:] == ["saved", *again] and done.returncode == status
