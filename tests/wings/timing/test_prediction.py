"""From a composed config to seconds and a table; offline and without weights."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from src.errors import ConfigError
from src.wings.memory.preflight import MemoryPlanError
from src.wings.timing.devices import named_device, this_device
from src.wings.timing.prediction import dry_run, setup_of
from src.wings.timing.step_time import predict
from tests.conftest import train_config

NODE = ("trainer.accelerator=gpu", "trainer.devices=8", "preflight.device=h100")


@pytest.fixture(scope="module", autouse=True)
def quickly(tmp_path_factory):
    """Each model is traced once, and rows, which `tests/config/test_guard.py` finds, are packed."""
    file = tmp_path_factory.mktemp("traces") / "traces.json"
    with pytest.MonkeyPatch.context() as patch:
        for module in ("timing.prediction", "memory.preflight"):
            patch.setattr(f"src.wings.{module}.cache_file", lambda *_: file)
        for module in ("src.config.guard", "src.wings.timing.prediction"):
            patch.setattr(f"{module}.find_ways", lambda *_: SimpleNamespace(rows="packed", cache="shared"))
        yield


def shown(*overrides: str) -> str:
    screen = io.StringIO()
    dry_run(train_config(Path(), *overrides), Console(file=screen, width=140))
    return screen.getvalue()


def test_eight_billion_weights_on_eight_devices():
    setup = setup_of(train_config(Path(), "experiment=qwen3_8b", *NODE))
    assert setup is not None
    # a layer of Qwen3-8B: q and o 2 x 4096², k and v 2 x 4096 x 1024, MLP 3 x 4096 x 12288, norms 2 x 4096 + 2 x 128
    layer = 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128
    assert setup.model.body == 36 * layer
    assert setup.model.stored == 36 * layer + 4096 * 151_936
    assert setup.model.key_values == 36 * 2 * 8 * 128
    assert (setup.ranks, setup.sharded, setup.half) == (8, True, True)
    assert (setup.shape.tokens, setup.shape.scored, setup.shape.optimizer_steps) == (512 * (700 + 8 * 399), 7 / 8, 8)
    parts = predict(setup)
    # a forward is 2 x 6.946e9 x 1.993e6 + 4 x 36 x 4096 x 1.596e9 pairs = 2.862e16 operations, the head 2.039e15
    assert parts["scoring"] == pytest.approx(9.75, abs=0.01)  # 7/8 (2.862e16 + 2.039e15) / 8 / 0.4 989e12, and 15 %
    assert 60 < sum(parts.values()) < 90


def test_mixtures_count_the_experts_that_a_token_meets():
    setup = setup_of(train_config(Path(), "experiment=qwen3_8b", "policy=qwen3_30b_a3b", *NODE))
    assert setup is not None
    idle = 48 * (128 - 8) * 3 * 2048 * 768  # of 128 experts 8 are chosen, three matrices of 2048 x 768 each
    assert setup.model.stored - 2048 * 151_936 - setup.model.body == idle
    assert setup.model.body == pytest.approx(3.3e9 - 2 * 2048 * 151_936, rel=0.05)  # its name: 3.3 B with embeddings


def test_a_dry_run_says_what_is_assumed_and_what_changes_would_save():
    text = shown("experiment=qwen3_8b", *NODE)
    assert "Predicted seconds of a rollout step [estimate]" in text
    assert "8 x h100" in text and "512 prompts of 700 tokens, 8 completions of 400" in text
    assert "policy.gradient_checkpointing=selective" in text and "updates.old_logprobs=sampler" in text
    assert "rollout.max_sequences" not in text  # a key of the other engine
    larger = "rollout.gpu_memory_utilization=0.7 rollout.max_num_seqs=1024"
    assert larger not in text  # the plan gives the engine all that is free
    given = ("rollout.gpu_memory_utilization=0.3", "rollout.max_num_seqs=64")
    assert larger in shown("experiment=qwen3_8b", *NODE, *given)


def test_a_dry_run_ends_with_an_error_where_the_run_would():
    node = ("experiment=qwen3_8b", "trainer.accelerator=gpu", "trainer.devices=1", "preflight.device=h100")
    screen = io.StringIO()
    with pytest.raises(MemoryPlanError, match=r"expected at most 79\.0 GiB"):
        dry_run(train_config(Path(), *node), Console(file=screen, width=80))
    said = screen.getvalue()
    assert "does not fit" in said and "Predicted seconds" not in said and "…" not in said  # nothing is cut off
    assert "Predicted seconds" in shown(*node, "preflight.action=warn")


def test_the_device_of_a_prediction_is_the_runs(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"preflight.device=h100: expected a run on GPUs, .* Set trainer.acc"):
        shown("experiment=tiny", "preflight.device=h100")
    with pytest.raises(ConfigError, match=r"trainer.devices=auto: expected a number .* Set trainer.devices=8"):
        shown("experiment=qwen3_8b", *NODE, "trainer.devices=auto")
    with pytest.raises(ConfigError, match=r"preflight\.timing\.waiting: expected at least 1, found 0\.5"):
        shown("experiment=qwen3_8b", *NODE, "preflight.timing.waiting=0.5")


def test_a_server_is_said_to_have_devices_of_its_own():
    assert "as many devices of its own" in shown("experiment=qwen3_8b", *NODE, "rollout=vllm_server")


def test_without_a_gpu_nothing_is_predicted(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "no prediction" in shown("experiment=tiny") and "preflight.device" in shown("experiment=tiny")


def test_devices_are_found_by_key_or_by_name(monkeypatch):
    assert named_device("l40s").bandwidth == 0.864e12
    with pytest.raises(ConfigError, match=r"preflight.device: expected one of \['h100', .* found 'h1000'"):
        named_device("h1000")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA H200")
    assert this_device().name == "h200"
