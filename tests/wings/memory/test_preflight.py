"""From a composed config to a plan, a table and a verdict; offline and without weights."""

import io
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, open_dict
from rich.console import Console

from src.runs.folder import GIB
from src.wings.memory.plan import host_capacity, show_plan
from src.wings.memory.preflight import MemoryPlanError, check_memory, plan_memory, preflight
from src.wings.memory.training_parts import longest_rows
from tests.architectures.small import small_config
from tests.conftest import train_config

NODE = ("trainer.accelerator=gpu", "trainer.devices=8")
QWEN = ("experiment=qwen3_8b", "trainer=fsdp", "rollout=native", *NODE)


@pytest.fixture(scope="module", autouse=True)
def traced_once(tmp_path_factory):
    """Tracing a layer's memory is most of a plan's time, and these plans ask for the same layer and rows again."""
    file = tmp_path_factory.mktemp("traces") / "traces.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.wings.memory.preflight.cache_file", lambda *_: file)
        yield


def _config(*overrides: str, gib: float | None = None) -> DictConfig:
    config = train_config(Path(), *overrides)
    with open_dict(config):
        config.preflight = {"action": "error", "device_gib": gib}
    return config


def _parts(plan):
    return {part.name: part.most / GIB for part in plan.parts}


def test_eight_billion_weights_on_eight_devices():
    plan = plan_memory(_config(*QWEN, gib=80))
    parts = _parts(plan)
    billion = 8.190735360e9 / GIB
    assert parts["weights"] == parts["gradients"] == pytest.approx(billion * 4 / 8)
    assert parts["optimizer"] == pytest.approx(billion * 8 / 8)
    assert parts["gathered root"] == pytest.approx((2 * 151936 * 4096 + 4096) * 2 / GIB)
    assert parts["engine weights"] == pytest.approx(billion * 2)
    assert plan.fits
    check_memory(plan)

    screen = io.StringIO()
    show_plan(plan, Console(file=screen, width=120))
    shown = screen.getvalue()
    assert "8 ranks on GPUs, sharded, precision bf16-mixed, weights float32" in shown
    assert "rows of up to 18424 tokens" in shown and "of 80.00 GiB (preflight.device_gib): fits." in shown


def test_what_does_not_fit_says_what_to_change():
    plan = plan_memory(_config(*QWEN, "trainer=default", "trainer.precision=bf16-mixed", "trainer.devices=1", gib=80))
    with pytest.raises(MemoryPlanError) as caught:
        check_memory(plan)
    message = str(caught.value)
    assert "expected at most 80.0 GiB (preflight.device_gib), predicted" in message
    assert "optimizer 61.0" in message and "weights 30.5" in message
    assert _parts(plan)["engine weights"] == pytest.approx(8.190735360e9 * 2 / GIB)  # a copy in bfloat16
    changes = message.partition("Change, by effect: ")[2]
    assert changes.startswith("trainer=fsdp on several devices; policy.lora")


@pytest.mark.slow  # tests/wings/memory/test_training_parts.py has the parts by hand
def test_more_ranks_adapters_and_offload_take_less():
    whole = plan_memory(_config(*QWEN, gib=80))
    more = plan_memory(_config(*QWEN, "trainer.num_nodes=2", gib=80))
    assert _parts(more)["optimizer"] == pytest.approx(_parts(whole)["optimizer"] / 2) and more.peak < whole.peak
    adapters = plan_memory(_config(*QWEN, "policy/lora=default", gib=80))
    assert adapters.phases["step"] < whole.phases["step"] - 8 * GIB
    offloaded = plan_memory(_config(*QWEN, "trainer.strategy.cpu_offload=true", gib=80))
    assert offloaded.peak < whole.peak - 10 * GIB
    assert offloaded.host == pytest.approx(8.190735360e9 * 16, rel=1e-6)  # the node's eight shares


@pytest.mark.slow
def test_longer_rows_take_more(random_policy):
    sizes = [
        plan_memory(_config(f"policy.path={random_policy}", f"updates.max_row_tokens={tokens}")).phases["layers"]
        for tokens in (1000, 2000)
    ]
    assert sizes[0] < sizes[1]


def test_the_last_answers_of_episodes_have_prompts_of_their_own():
    """16 x 8 of 1,000 - 96 tokens with 95 more; 4 layers store 2 x 32 values twice a token, 4 bytes each: 2,048."""
    plan = plan_memory(_config("experiment=tiny_episodes"))
    (cache,) = (part for part in plan.parts if part.name == "key/value cache")
    assert cache.most == 128 * (904 + 95) * 2048


def test_a_warm_starts_batch_takes_no_more_than_its_rows(random_policy):
    """Examples of 400 tokens in rows of 1,600: 4 and 16 of them take the same, 2 take less."""
    stage = ("warm_start=sft", "warm_start.max_tokens=400", "updates.max_row_tokens=1600")
    two, four, many = (
        _parts(plan_memory(_config(f"policy.path={random_policy}", *stage, f"warm_start.batch_size={size}")))
        for size in (2, 4, 16)
    )
    assert two["warm-start batch"] < four["warm-start batch"] == many["warm-start batch"]


@pytest.mark.slow
def test_a_penalty_keeps_the_start_and_ddp_a_copy_each(random_policy):
    plain = _parts(plan_memory(_config(f"policy.path={random_policy}")))
    reference = _parts(plan_memory(_config(f"policy.path={random_policy}", "algorithm=rest_kl")))
    assert reference["reference"] == plain["weights"] and "reference" not in plain
    ddp = plan_memory(
        _config(f"policy.path={random_policy}", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    )
    assert _parts(ddp)["weights"] == plain["weights"] and "for each of 2 processes" in ddp.capacity.source


SHORT = ("trainer.accelerator=cpu", "data.max_prompt_tokens=80", "sampling.max_new_tokens=40")


def _folder(kind: str, path: Path) -> Path:
    small_config(kind).save_pretrained(path)
    return path


def test_a_hybrid_is_planned_as_it_runs(tmp_path):
    plan = plan_memory(_config(f"policy.path={_folder('lfm2', tmp_path)}", *SHORT))
    # 8 prompts of 8 completions are 64 sequences of 119 tokens
    assert "separate rows of up to 7616 tokens" in plan.assumptions[1] and not plan.bounds
    cache = next(part for part in plan.parts if part.name == "key/value cache")
    assert cache.explanation == "the model's own, of whole sequences"


def test_what_is_bounded_is_said_once(tmp_path, caplog):
    config = _config(f"policy.path={_folder('dbrx', tmp_path)}", *SHORT, gib=80)
    said = "Model type 'dbrx' cannot be traced (DynamicOutputShapeException: aten.nonzero.default)."
    config.callbacks.checkpoint = None
    preflight(config)
    assert caplog.text.count(said) == 1
    screen = io.StringIO()
    show_plan(plan_memory(config), Console(file=screen, width=1000))
    assert screen.getvalue().count(said) == 1


KINDS = (  # traced packed and separate, and bounded; all 174 take half an hour
    "qwen3_moe qwen3_5 gemma4 gpt_oss falcon_h1 mamba2 jamba lfm2 llama4 deepseek_v3 dbrx opt minicpm3 gpt2".split()
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_type_has_a_plan(kind, tmp_path):
    folder = _folder(kind, tmp_path)
    for dtype in ("float32", "bfloat16"):
        settings = (f"policy.path={folder}", f"policy.dtype={dtype}", *SHORT)
        plan = plan_memory(_config(*settings))
        assert plan.peak > 0 and len(plan.bounds) <= 1
        if kind != "gpt2":  # whose layers are no nn.Linear
            assert plan_memory(_config(*settings, "policy/lora=default")).peak > 0


BESIDE = ("rollout=vllm", "trainer.accelerator=gpu", "trainer.devices=1", "callbacks.checkpoint=null")


def test_vllm_sleeps_during_the_update():
    plan = plan_memory(_config(*BESIDE, "rollout.gpu_memory_utilization=0.45", "rollout.sleep_level=1", gib=80))
    engine = next(part for part in plan.parts if part.name == "engine")
    assert engine.bytes == dict.fromkeys(("rollout", "scoring", "handover"), int(0.45 * 80 * GIB))
    assert [part.name for part in plan.host_parts] == ["engine asleep"] and plan.host == plan.engine.weights


def test_what_is_left_to_the_plan_is_filled_in_and_shown():
    """256 prompts of a benchmark are the most at once; 400 + 112 tokens are less than its context, 8,192 positions."""
    config = _config(*BESIDE, gib=80)
    preflight(config)
    assert (config.rollout.gpu_memory_utilization, config.rollout.max_num_seqs) == (0.7, 256)
    screen = io.StringIO()
    plan = plan_memory(config)
    show_plan(plan, Console(file=screen, width=1000))
    assert "vLLM with rollout.max_num_seqs=256: weights 0.0, profile 1." in screen.getvalue()
    assert "rollout.gpu_memory_utilization=0.7 of 80.0 GiB: starts, with room for " in screen.getvalue()
    given = _config(*BESIDE, "rollout.gpu_memory_utilization=0.5", "rollout.max_num_seqs=64", gib=80)
    preflight(given)
    assert (given.rollout.gpu_memory_utilization, given.rollout.max_num_seqs) == (0.5, 64)


def test_vllm_that_cannot_start_is_refused():
    with pytest.raises(
        MemoryPlanError, match=r"memory: vLLM will not start\. .*=0\.01 of 80\.0 GiB\. Change: raise roll"
    ):
        preflight(_config(*BESIDE, "rollout.gpu_memory_utilization=0.01", gib=80))


@pytest.mark.parametrize("budget", [500, 1788, 2048, 4096])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_rows_are_those_that_packing_can_make(budget, groups):
    rows = longest_rows(budget, groups, prompt=1024, completions=4, completion=192)
    for row in rows:
        assert row.prompt <= 1024 and row.completion <= 192 and row.groups <= groups
        assert row.tokens <= budget or row.groups == 1


def test_the_control_group_bounds_the_host(tmp_path):
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("2500\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 400\n")
    assert host_capacity(tmp_path).bytes == 3000 - 2500 + 400
    (tmp_path / "memory.max").write_text("max\n")
    assert host_capacity(tmp_path).source == "free on this machine"


def test_without_a_gpu_its_memory_is_not_known():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    plan = plan_memory(_config("trainer.accelerator=gpu"))
    assert plan.capacity.bytes is None and plan.fits
