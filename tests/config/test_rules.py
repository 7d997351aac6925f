"""Cross-field rules: one clear error, before anything is loaded, that names the keys.

docs/troubleshooting.md has the others, with their messages; tests/faults/test_bad_inputs.py builds each of them.
"""

from pathlib import Path

import pytest
import torch

from src.config.checks import check_composed
from src.config.instantiating import instantiate_loggers
from src.config.policy_checks import check_lengths, check_rate
from src.config.rules import VALIDATION_METRICS, check_config
from src.errors import ConfigError
from src.rewards.tool_call import RewardParts
from tests.conftest import ROOT, eval_config, train_config

GROUPS = ("callbacks", "logger", "reward", "rollout", "trainer")
CHOICES = [f"{group}={file.stem}" for group in GROUPS for file in sorted((ROOT / "configs" / group).glob("*.yaml"))]


# test_algorithms.py trains with every config of `algorithm`
@pytest.mark.parametrize("choice", CHOICES)
def test_every_config_of_a_group_passes(choice):
    needed = ["reward.functions={count: builtins.len}"] if choice == "reward=python" else []
    needed += ["trainer.devices=4"] if choice.startswith("rollout=vllm_tp") else []
    check_config(train_config(Path(), choice, *needed, "dry_run=true"))  # no GPU, no vLLM


def test_evaluations_pass():
    check_composed(eval_config(Path(), "benchmark=[bfcl,api_bank,synthetic]"), "eval.yaml")
    check_composed(eval_config(Path(), "policy=tiny", "rollout=vllm"), "eval.yaml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.num_nodes=0"], "trainer.num_nodes: expected at least 1, found 0"),
        (["trainer.precision=bf16-true"], "trainer.precision=bf16-true: expected one of .* policy.dtype=bfloat16 with"),
        (["data=episodes"], "data=episodes: expected an environment, found none"),
        (["environment=generated"], "environment: expected its tasks as data, found another corpus"),
        (
            ["data=episodes", "environment=generated", "algorithm=sft"],
            "algorithm=sft with data=episodes: tasks have no targets",
        ),
        (
            ["data=episodes", "environment=generated", "algorithm=rest_published"],
            "with data=episodes: expected sampled",
        ),
        (["sampling.temperature=0"], "sampling.temperature=0 makes all completions of a prompt equal"),
        (
            ["updates.rollout_steps=5", "trainer.val_check_interval=6"],
            "trainer.val_check_interval=6 is more than updates.rollout_steps=5",
        ),
        (
            ["algorithm.weighting.progress=fraction", "callbacks.curriculum=null"],
            "algorithm.weighting.progress=fraction needs callbacks.curriculum",
        ),
        (
            ["algorithm=rest_auto", "callbacks.curriculum=null"],
            "algorithm.weighting.initialiser=inverse_entropy needs callbacks.curriculum",
        ),
        (["+trainer.limit_val_batches=0"], "optimized_metric=val/exact_match with trainer.limit_val_batches=0"),
        (["algorithm.regions=published"], "path of a function .*'published'.*src.wings.published.regions"),
        (["algorithm.regions=math.nope"], "path of a function .*'math.nope'.* has no attribute 'nope'"),
        (["algorithm.regions=math.sqrt"], "path of a function .*'math.sqrt'.* no argument 'tokenizer'"),
        (["callbacks.benchmark=null"], r"benchmark=\[synthetic\] needs callbacks.benchmark"),
        (["trainer.devices=two"], "trainer.devices: expected a number, a list or 'auto', found 'two'"),
        (["rollout=vllm", "updates.old_logprobs=sampler"], "old_logprobs=sampler needs rollout=native"),
        (["updates.zero_advantage=drop"], "updates.zero_advantage: expected 'skip' or 'score' or"),
        (["algorithm=rest_kl", "algorithm.loss.denominator=with_advantage"], "denominator: expected all with kl_coef"),
        (["rollout=vllm", "rollout.gpu_memory_utilization=90"], "gpu_memory_utilization: expected null or in"),
        (["rollout=vllm", "rollout.max_num_seqs=0"], "max_num_seqs: expected null or at least 1"),
        (["rollout=vllm", "rollout.sleep_level=3"], "sleep_level: expected 1 or 2, found 3"),
        (["rollout=vllm", "rollout.tensor_parallel_size=2"], "expected a divisor of the 1 ranks of a node"),
        (["rollout=vllm_server", "rollout.url=gpu7:8000"], "rollout.url: expected http://HOST:PORT"),
        (["+data.path=x.json"], "data.path: the chosen corpus reads no 'x.json'. Choose one that does with data=NAME"),
        (
            ["data=messages", "data.train.train_on=first"],
            "data.train.train_on: expected 'all' or 'last' or 'marked', found 'first'",
        ),
        (["data=rlla", "data.path=nowhere.json"], "prompt.layout=compact with data.train: this corpus publishes"),
        (["data=rlla", "data.path=nowhere.json", "prompt.layout=published"], "data.train.path: no file or folder"),
    ],
)
def test_rules(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_config(train_config(Path(), *overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+paths.log_dri=x"], "paths.log_dri: no such key. Did you mean paths.log_dir?"),
        (["+data.train.num_trian=3"], "Did you mean data.train.num_train?"),
        (["+algorithm.weighting.factors.reason=1"], "Did you mean algorithm.weighting.factors.reasoning?"),
        (
            ["+callbacks.checkpoint.save_lst=true"],
            "Did you mean callbacks.checkpoint.save_last?",
        ),  # of Lightning's base
        (
            ["+callbacks.bench.every_n_rollout_steps=3"],
            "callbacks.bench: expected a config with _target_, found the keys",
        ),
        (["~data.train"], "data.train: expected a value, found none"),
        (["~data.max_prompt_tokens"], "data.max_prompt_tokens: expected a value, found none"),
        (["preflight.device_gib=abc"], "preflight.device_gib: expected a number above 0 or null, found 'abc'"),
        (["warm_start=sft"], "paths.cache_dir: expected a folder, which keeps the result of warm_start, found null"),
        (["sampling.n=true"], "sampling.n: expected an integer, found True"),
        (["trainer.precision=bf16-mix"], "trainer.precision: expected .*'bf16-mixed'.*, found 'bf16-mix'"),
        (["seed=one"], "seed: expected an integer, found 'one'"),
        (["warm_start=placeholder"], "warm_start.source.path: Interpolation key 'data.path' not found"),
    ],
)
def test_keys_and_values(overrides, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        check_config(train_config(Path(), *overrides))


def test_regions_of_a_file_that_cannot_import_something_say_what(tmp_path, monkeypatch):
    (tmp_path / "lab_regions").mkdir()
    (tmp_path / "lab_regions" / "mine.py").write_text(
        "import a_package_that_is_not_there\n\n\ndef f(ids, tokenizer): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ConfigError, match=r"found 'lab_regions\.mine\.f': No module named 'a_package_that_is_not_there'"
    ):
        check_config(train_config(Path(), "algorithm.regions=lab_regions.mine.f"))


def test_a_run_needs_no_logger():
    config = train_config(Path(), "logger=[]")
    check_config(config)
    assert instantiate_loggers(config.logger) == []


def test_metrics_are_those_that_validation_logs():
    logged = RewardParts(0.0, 0.0, 0.0, 0.0, 0.0, 0.0).metrics()
    assert set(logged) | {"reward", "tokens", "truncated", "with_call"} == set(VALIDATION_METRICS)


def test_prompt_and_completion_must_fit_the_model():
    config = train_config(Path(), "data.max_prompt_tokens=900", "sampling.max_new_tokens=200")
    check_lengths(config, 1100)
    check_lengths(config, None)
    with pytest.raises(ConfigError, match="900 \\+ 200 is more than the model's 1099 positions"):
        check_lengths(config, 1099)


@pytest.mark.parametrize(
    ("override", "positions", "where"),
    [
        ("callbacks.benchmark.context=700", 4096, "callbacks.benchmark.context, 700"),
        ("rollout.max_model_len=700", 4096, "rollout.max_model_len, 700"),
        ("benchmark=[synthetic]", 700, "the model's positions, 700"),
    ],
)
def test_benchmarks_need_room_for_a_prompt(override, positions, where):
    config = train_config(Path(), "rollout=vllm", "callbacks.benchmark.max_new_tokens=699", override)
    check_lengths(config, positions)
    config.callbacks.benchmark.max_new_tokens = 700
    with pytest.raises(ConfigError, match=f"max_new_tokens=700 leaves no room for a benchmark's prompt in {where} tok"):
        check_lengths(config, positions)
    config.benchmark = {}
    check_lengths(config, positions)


def test_updates_must_not_be_lost_in_bfloat16():
    """0.02 + 1e-6 is 0.02 in bfloat16: the published learning rate would train nothing."""
    assert torch.tensor(0.02, dtype=torch.bfloat16) + 1e-6 == torch.tensor(0.02, dtype=torch.bfloat16)
    config = train_config(Path(), "optimizer.learning_rate=1.0e-6", "policy.dtype=bfloat16")
    check_rate(config, torch.float32)
    with pytest.raises(ConfigError, match=r"policy\.dtype=float32 trainer.precision=bf16-mixed"):
        check_rate(config, torch.bfloat16)
    check_rate(train_config(Path(), "optimizer.learning_rate=1.0e-4"), torch.bfloat16)


def test_tasks_need_a_reward_and_a_file_to_validate_on(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Go."}\n')
    (tmp_path / "tools.py").write_text(
        "class Silent:\n    def reset(self, **row):\n        pass\n\n"
        "class Fair(Silent):\n    def get_reward(self):\n        return 1.0\n"
    )
    rows = tmp_path / "rows.jsonl"
    for name, given, message in (
        (
            "Silent",
            f"{{train: {rows}, val: {rows}}}",
            "data=episodes: expected an environment with a reward, found none",
        ),
        (
            "Fair",
            str(rows),
            r"environment.rows: expected a file to validate on .* Set environment.rows={train:FILE,val",
        ),
    ):
        path = f"environment.path={tmp_path}/tools.py:{name}"
        with pytest.raises(ConfigError, match=message):
            check_config(
                train_config(tmp_path, "data=episodes", "environment=python", path, f"environment.rows={given}")
            )
