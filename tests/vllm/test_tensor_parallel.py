"""One engine on two ranks, started by torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.vllm.scoring import parted

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_each_rank_gets_its_own_completions(random_policy: Path, tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = subprocess.run(
        [*torchrun, "--module", "tests.vllm.tensor_parallel", str(random_policy), str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for own, others in zip(first["steps"], second["steps"], strict=True):
        assert max(own["gap"], others["gap"]) <= 1e-5
        assert own["ids"][0] == others["ids"][1]  # the prompt and seed that both gave
        assert own["ids"][1] != others["ids"][0]
    assert first["steps"][0]["ids"] != first["steps"][1]["ids"]
    assert parted(first["alone"], first["steps"][1]["ids"]) <= 1  # of four
    assert second["alone"] == []
