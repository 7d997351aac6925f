"""Every published experiment on nodes of one and of eight devices of 80 GiB: it fits, or is refused with keys."""

from pathlib import Path

import pytest

from src.config.guard import Ways
from src.wings.memory.preflight import MemoryPlanError, check_memory, plan_memory
from tests.conftest import train_config

MORE = "by effect: more trainer.devices or trainer.num_nodes; trainer.strategy.cpu_offload=true; policy.lora"
EIGHT = {
    "llama3_2_3b": None,
    "llama3_2_3b_native": None,
    "qwen3_1_7b": None,
    "qwen3_4b_2507": None,
    "qwen3_4b_thinking_2507": None,
    "qwen3_5_9b_native": None,
    "qwen3_8b": None,
    "qwen3_8b_episodes": None,
    "qwen3_8b_native": None,
    "qwen3_14b": None,
    "gpt_oss_20b_native": None,
    "qwen3_32b": MORE,
}
"""What a refusal names; None: it fits, and vLLM starts."""
ONE = dict.fromkeys(EIGHT, MORE) | {
    name: None
    for name in ("llama3_2_3b", "llama3_2_3b_native", "qwen3_1_7b", "qwen3_4b_2507", "qwen3_4b_thinking_2507")
}
CASES = [(name, devices, refused) for devices, table in ((8, EIGHT), (1, ONE)) for name, refused in table.items()]


def published(name: str, devices: int, cache: Path):
    """The config of an experiment for devices of 80 GiB."""
    return train_config(
        cache,
        f"experiment={name}",
        "trainer.accelerator=gpu",
        f"trainer.devices={devices}",
        "preflight.device_gib=80",
        f"paths.cache_dir={cache}",
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Traces of layers, which experiments of one model share."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow  # traces eight architectures
@pytest.mark.parametrize(("name", "devices", "refused"), CASES)
def test_it_fits_or_says_what_to_change(name, devices, refused, cache, monkeypatch):
    ways = Ways("separate", "padded") if name == "qwen3_5_9b_native" else Ways("packed", "shared")  # as it was found
    monkeypatch.setattr("src.config.guard.find_ways", lambda *_: ways)
    plan = plan_memory(published(name, devices, cache))
    assert plan.engine is not None and plan.engine.length == 32_768
    if refused is None:
        check_memory(plan)
        assert plan.engine.available > 2 * plan.engine.request
        return
    with pytest.raises(MemoryPlanError) as caught:
        check_memory(plan)
    assert refused in str(caught.value).partition("Change")[2]
