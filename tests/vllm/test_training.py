"""The whole training loop with vLLM: it samples from the weights that are trained, or the run stops."""

import json
import threading
import time
from pathlib import Path

import pytest

from tests.architectures.test_families import model_folder
from tests.distributed.runs import SCRIPTED, run, steps
from tests.vllm.server import VllmServer

pytestmark = pytest.mark.vllm

REAL = (
    *(setting for setting in SCRIPTED if not setting.startswith("rollout.")),
    "rollout=vllm",
    "rollout.enforce_eager=true",
    "updates.probe_tokens=16",
    "updates.rollout_steps=3",
    "trainer.val_check_interval=3",
    "data.prompts_per_step=5",
    "updates.prompts_per_minibatch=5",
)


@pytest.mark.parametrize("trainer", ["cpu", "fsdp_cpu"])
def test_engine_and_trainer_agree_after_every_update(trainer: str, random_policy: Path, tmp_path: Path) -> None:
    """One rank, and two that share the policy and have an engine each."""
    run(tmp_path, *REAL, f"policy.path={random_policy}", f"trainer={trainer}", "validate_at_start=true")
    found = steps(tmp_path)
    assert [step["rollout_step"] for step in found] == [0, 1, 2]
    for step in found:
        assert step["engine/gap"] <= 1e-5
        assert step["train/sampler_gap_max"] <= 1e-5
        assert step["train/grad_norm"] > 1e-3  # weights moved between these
    events = [json.loads(line)["event"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [event for event in events if event != "alarm"] == ["validation", *["rollout_step"] * 3, "validation"]


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_a_mixtures_experts_follow_every_update(kind: str, random_policy: Path, tmp_path: Path) -> None:
    """Stacked in the trainer, a tensor each on the way, packed by vLLM's CPU kernel."""
    policy = model_folder(tmp_path / "policy", kind, random_policy, hidden_size=128, head_dim=32)
    run(tmp_path / "run", *REAL, f"policy.path={policy}", "trainer=cpu", "updates.rollout_steps=5")
    found = steps(tmp_path / "run")
    assert len(found) == 5
    for step in found:
        assert step["engine/gap"] <= 2e-5
        assert step["train/sampler_gap_max"] <= 5e-5
        assert step["train/grad_norm"] > 1e-3


def test_experts_that_vllm_chooses_are_compared(random_policy: Path, tmp_path: Path) -> None:
    """vLLM returns them on GPUs only; here they are read where its routers choose."""
    policy = model_folder(tmp_path / "policy", "qwen3_moe", random_policy, hidden_size=128, head_dim=32)
    settings = (*REAL, f"policy.path={policy}", "trainer=cpu", "rollout._target_=tests.vllm.experts.with_experts")
    run(tmp_path / "run", *settings)
    assert [step["engine/equal_experts"] for step in steps(tmp_path / "run")] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("engine", "when"), [("without_head", 0), ("stale", 1)])
def test_an_engine_that_does_not_follow_is_caught(engine: str, when: int, random_policy: Path, tmp_path: Path) -> None:
    settings = (*REAL, f"policy.path={random_policy}", "trainer=cpu", f"rollout._target_=tests.vllm.broken.{engine}")
    output = run(tmp_path, *settings, expect_failure=True)
    assert f"EngineMismatchError: rollout step {when}: the rollout engine's log-probabilities differ" in output


@pytest.mark.slow
def test_training_outlives_its_server(random_policy: Path, tmp_path: Path) -> None:
    """The server is killed between two rollout steps and started with random weights; it gets those of the run."""
    training = tmp_path / "run"
    server = VllmServer(random_policy, tmp_path / "server.txt")

    def strike() -> None:
        while not (training / "metrics.jsonl").is_file():
            time.sleep(0.1)
        server.kill()
        server.start(wait=False)

    thread = threading.Thread(target=strike, daemon=True)
    try:
        server.start()
        thread.start()
        settings = (*(setting for setting in REAL if not setting.startswith("rollout")), "rollout=vllm_server")
        run(training, *settings, f"policy.path={random_policy}", "trainer=cpu", f"rollout.url={server.url}")
        thread.join()
    finally:
        server.kill()
    found = steps(training)
    assert [step["rollout_step"] for step in found] == [0, 1, 2]
    for step in found:
        assert step["engine/gap"] <= 1e-5
        assert step["train/sampler_gap_max"] <= 1e-5
