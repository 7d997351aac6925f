"""Every experiment composes, instantiates and takes one rollout step, on random weights."""

import json
import shutil
from pathlib import Path

import pytest
from hydra.errors import InstantiationException

from src.train import train
from src.wings.tiny.make_native import FOLDER as NATIVE_FOLDER
from tests.conftest import FEW_EXAMPLES, ROOT, SMALL, published_corpus, train_config

EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs/experiment").glob("*.yaml"))
PUBLISHED = [name for name in EXPERIMENTS if name.startswith(("qwen3", "llama3", "gpt_oss")) and "episodes" not in name]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Eight records in the published layout, by hand."""
    return published_corpus(tmp_path_factory.mktemp("corpus") / "rlla.json", 8)


def _overrides(name: str, corpus: Path, policy: Path) -> list[str]:
    overrides = [f"experiment={name}", *SMALL, f"policy.path={policy}", "policy.dtype=float32"]
    config = train_config(Path(), f"experiment={name}")
    if "strategy" in config.trainer:  # all GPUs, with vLLM
        overrides += ["trainer=default", "trainer.precision=bf16-mixed", "rollout=native"]
    if "num_train" not in config.data.train:
        overrides = [override for override in overrides if override not in FEW_EXAMPLES]
    if "composed" in config.data.train.get("_target_", ""):  # a tokenizer that was not made for it
        overrides += ["data.max_prompt_tokens=1500"]
    if config.environment is not None:
        overrides += ["environment.num_train=40", "environment.num_val=4", "data.max_prompt_tokens=300"]
        overrides += [f"policy.path={NATIVE_FOLDER}"]
    if config.warm_start is not None and "generated" in config.warm_start.source.get("_target_", ""):
        overrides += ["warm_start.source.num_train=32"]
    if "rlla" in config.data.train.get("_target_", ""):
        overrides += [f"data.path={corpus}", "data.train.val_share=0.25"]
    return overrides


NATIVE_TEMPLATE = """\
{% if tools %}
<|im_start|>system
{% for tool in tools %}
{{ tool | tojson }}
{% endfor %}
<|im_end|>
{% endif %}
{% for message in messages %}
<|im_start|>{{ message.role }}
{% if message.reasoning_content %}
<think>
{{ message.reasoning_content }}
</think>

{% endif %}
{{ message.content }}
{% for call in message.tool_calls or [] %}
<tool_call>
{{ call.function | tojson }}
</tool_call>
{% endfor %}
<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""
"""The least that the native layout asks of a template."""

LIKE_QWEN3_8B = (
    *("qwen3_1_7b", "qwen3_14b", "qwen3_32b", "qwen3_4b_2507", "qwen3_4b_thinking_2507"),
    *("native", "qwen3_5_9b_native", "llama3_2_3b_native", "gpt_oss_20b_native"),
)
"""They differ from it in the policy's name, and here all train the same one."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LIKE_QWEN3_8B else name for name in EXPERIMENTS]
)
def test_experiment_takes_one_step(name, corpus, random_policy, tmp_path):
    policy = random_policy
    if name.endswith("native"):  # a template that takes tools
        policy = shutil.copytree(random_policy, tmp_path / "policy")
        (policy / "chat_template.jinja").write_text(NATIVE_TEMPLATE)
    train(train_config(tmp_path, *_overrides(name, corpus, policy)))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["rollout_steps"] == 1 and summary["optimizer_steps"] == 2
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert [kind for kind in kinds if kind != "alarm"] == [
        "validation",
        "rollout_step",
        "validation",
    ]
    assert (tmp_path / "checkpoints/last.ckpt").exists() and (tmp_path / "checkpoints/best.ckpt").exists()
    rollouts = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    assert len(rollouts) == 2
    for record in rollouts:
        assert len(record["tokens"]) == len(record["regions"]) == len(record["weights"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.schedule=linear"], r"optimizer\.schedule: expected 'constant' or 'cosine', found 'linear'"),
        (
            ["data.max_prompt_tokens=1"],
            r"prompts of split 'train' .* none is left: .* data\.max_prompt_tokens=1 tokens",
        ),
    ],
)
def test_settings_and_data_are_checked_before_the_warm_start(
    overrides, message, corpus, random_policy, tmp_path, monkeypatch
):
    monkeypatch.setattr("src.training.run.warm_start", lambda *_: pytest.fail("trained first"))
    config = train_config(tmp_path, *_overrides("smollm2_135m", corpus, random_policy), *overrides)
    with pytest.raises((ValueError, InstantiationException), match=message):
        train(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_experiments_have_the_tables_numbers(name):
    config = train_config(Path(), f"experiment={name}")
    assert (config.data.prompts_per_step, config.updates.prompts_per_minibatch) == (512, 64)
    assert config.data.max_prompt_tokens == config.sampling.max_new_tokens == 2048
    assert config.optimizer.learning_rate == 1e-6
    assert config.algorithm.loss.kl_coef == 0
    assert config.trainer.val_check_interval == config.callbacks.checkpoint.every_n_rollout_steps == 15
    assert config.callbacks.benchmark.every_n_rollout_steps == 15 and set(config.benchmark) == {"bfcl", "api_bank"}
    assert config.sampling.n == 8
    factors, weighting = config.algorithm.weighting.factors, config.algorithm.weighting
    found = [factors.reasoning, factors.tool_name, factors.tool_parameters, factors.format]
    alphas = [weighting.alpha_format, weighting.alpha_parameters, weighting.alpha_reasoning]
    if name.startswith("llama3"):
        assert found == [0.6, 1.2, 0.6, 1.0] and alphas == [0.002, 0.002, 0.002]
    else:
        assert found == [0.016, 1.2, 0.8, 0.95] and alphas == [0.003, 0.003, 6e-5]


@pytest.mark.parametrize("group", ["policy", "data"])
def test_every_config_of_a_group_composes(group):
    """What these refer to is not here; of the other groups tests/config/test_rules.py checks every config."""
    for path in sorted((ROOT / "configs" / group).glob("*.yaml")):
        assert train_config(Path(), f"{group}={path.stem}")[group] is not None
