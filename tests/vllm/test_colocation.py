"""The plan's question of an engine beside the trainer against vLLM's own, which its engine core asks as it starts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from src.config.guard import Ways
from src.runs.folder import GIB
from src.wings.memory.activations import RowMemory
from src.wings.memory.engine_room import EngineRoom
from src.wings.memory.preflight import plan_memory
from src.wings.memory.training_parts import RowDemand
from tests.conftest import ROOT
from tests.wings.memory.test_published import CASES, published

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def vllm_config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As on a large GPU; the model's length is set in each test."""
    from vllm.engine.arg_utils import EngineArgs

    folder = tmp_path_factory.mktemp("qwen3")
    (folder / "config.json").write_text(_described("Qwen/Qwen3-8B"))
    sizes = {"block_size": 16, "max_num_batched_tokens": 16384, "max_num_seqs": 512, "kv_cache_memory_bytes": GIB}
    found = EngineArgs(str(folder), dtype="bfloat16", skip_tokenizer_init=True, load_format="dummy", **sizes)
    config = found.create_engine_config()
    config.cache_config.kv_cache_layout = "LBNHC"  # what its workers would have agreed on
    return config


def _described(hub_id: str) -> str:
    return (ROOT / "src/models/architectures" / f"{hub_id.partition('/')[2]}.json").read_text()


def _specs(hub_id: str, ranks: int) -> dict[str, Any]:
    """What each layer of one rank keeps, from config.json."""
    from vllm.model_executor.layers.mamba.mamba_utils import MambaStateShapeCalculator
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec

    text = json.loads(_described(hub_id))
    text = text.get("text_config", text)
    heads, size = max(1, text["num_key_value_heads"] // ranks), text["head_dim"]
    numbers = {"num_kv_heads": heads, "head_size": size, "dtype": torch.bfloat16}
    specs: dict[str, Any] = {}
    for index, kind in enumerate(text.get("layer_types") or ["full_attention"] * text["num_hidden_layers"]):
        block = 16
        if "linear_attention" in text.get("layer_types", ()):
            shapes = MambaStateShapeCalculator.gated_delta_net_state_shape(
                ranks,
                text["linear_num_key_heads"],
                text["linear_num_value_heads"],
                text["linear_key_head_dim"],
                text["linear_value_head_dim"],
                text["linear_conv_kernel_dim"],
                0,
            )
            state = MambaSpec(
                block_size=1, shapes=shapes, dtypes=(torch.bfloat16, torch.float32), mamba_cache_mode="align"
            )
            block *= -(-state.page_size_bytes // (16 * 4 * heads * size))  # pages of all layers are equally large
            if kind == "linear_attention":
                page = 4 * heads * size * block
                specs[f"layer {index}"] = MambaSpec(
                    block_size=block,
                    shapes=shapes,
                    dtypes=(torch.bfloat16, torch.float32),
                    mamba_cache_mode="align",
                    page_size_padded=page,
                )
                continue
        if kind == "sliding_attention":
            spec: Any = SlidingWindowSpec(block_size=block, sliding_window=text["sliding_window"], **numbers)
        else:
            spec = FullAttentionSpec(block_size=block, **numbers)
        specs[f"layer {index}"] = spec
    return specs


def _starts(vllm_config: Any, specs: dict[str, Any], length: int, available: int) -> bool:
    """Whether vLLM's engine core would go on with so much memory for its cache."""
    from vllm.v1.core.kv_cache_utils import get_kv_cache_configs

    vllm_config.model_config.max_model_len = length
    try:
        get_kv_cache_configs(vllm_config, [dict(specs)], [available])
    except ValueError as error:
        assert "max seq len" in str(error) or "No available memory" in str(error)
        return False
    return True


def _room(name: str, devices: int, folder: Path, patch: pytest.MonkeyPatch, *overrides: str) -> tuple[str, EngineRoom]:
    """What the plan says; activations, which are not asked for here, are not traced."""
    row = RowDemand(RowMemory(GIB // 8, GIB // 8, GIB, GIB), GIB, GIB)
    patch.setattr("src.wings.memory.preflight._row_demand", lambda *_: row)
    patch.setattr("src.config.guard.find_ways", lambda *_: Ways("packed", "shared"))
    config = published(name, devices, folder)
    config.merge_with_dotlist(list(overrides))
    room = plan_memory(config).engine
    assert room is not None
    return str(config.policy.hub_id), room


@pytest.mark.parametrize(("name", "devices"), [case[:2] for case in CASES])
def test_vllm_starts_where_the_plan_says_so(
    name: str, devices: int, vllm_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the share that the plan gives, and at the least and a MiB less than the plan asks for."""
    hub_id, room = _room(name, devices, tmp_path, monkeypatch)
    ranks = {"qwen3_14b": 2, "gpt_oss_20b_native": 2, "qwen3_32b": 4}.get(name, 1)
    specs = _specs(hub_id, ranks)
    assert room.available is not None
    assert _starts(vllm_config, specs, room.length, room.available) == room.fits
    assert _starts(vllm_config, specs, room.length, room.request)
    if not {"qwen3_5_9b_native", "gpt_oss_20b_native"} & {name}:  # of windows and states the plan takes a bound
        assert not _starts(vllm_config, specs, room.length, room.request - (1 << 20))
    else:
        assert not _starts(vllm_config, specs, room.length, int(0.4 * room.request))


def test_a_length_that_is_too_long_is_refused_by_both(
    vllm_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All 262,144 positions, as a null would have meant without benchmarks' context."""
    settings = ("rollout.gpu_memory_utilization=0.45", "rollout.max_model_len=262144")
    hub_id, room = _room("qwen3_4b_2507", 8, tmp_path, monkeypatch, *settings)
    assert room.available is not None and not room.fits
    assert not _starts(vllm_config, _specs(hub_id, 1), room.length, room.available)
