"""Configs of old run folders: every class that they name is found, wherever it is now."""

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from src.runs.config_file import load_config
from src.runs.old_names import new_target, with_new_names

OLD_TARGETS = """
src.algorithm.policy_loss.PolicyLossConfig
src.algorithm.region_weights.RegionFactors
src.algorithm.region_weights.RegionWeighting
src.callbacks.benchmark.BenchmarkCallback
src.callbacks.checkpoint.RolloutCheckpoint
src.callbacks.curriculum.Curriculum
src.callbacks.health.Health
src.callbacks.hf_export.HFExport
src.callbacks.live_figures.LiveFigures
src.callbacks.metrics_file.MetricsFile
src.callbacks.progress_bar.RolloutProgressBar
src.callbacks.reasoning_share.ReasoningShare
src.callbacks.region_entropy.RegionEntropy
src.callbacks.rollout_log.RolloutLog
src.callbacks.slow_logger.SlowLogger
src.callbacks.variance_meter.VarianceMeter
src.chatting.toolboxes.BfclToolbox
src.chatting.toolboxes.SyntheticToolbox
src.data.datamodule.ToolDialogueDataModule
src.data.rendering.PromptRenderer
src.data.sources.hammer.HammerSource
src.data.sources.mix.MixSource
src.data.sources.rlla.RllaSource
src.data.sources.synthetic.SyntheticSource
src.data.sources.toolace.ToolAceSource
src.data.sources.xlam.XlamSource
src.evaluation.answering.GenerationSettings
src.evaluation.api_bank.ApiBank
src.evaluation.bfcl.benchmark.Bfcl
src.evaluation.bfcl.sandbox.Sandbox
src.evaluation.comparison.ComparisonSettings
src.evaluation.synthetic.SyntheticBenchmark
src.models.lora.LoraSettings
src.models.optimizers.OptimizerSettings
src.models.policy_config.PolicyConfig
src.models.settings.AlgorithmSettings
src.models.settings.SupervisedSettings
src.models.settings.UpdateSettings
src.models.sharding.ShardedStrategy
src.models.warm_start.WarmStart
src.rewards.published.PublishedReward
src.rewards.tool_call.ToolCallReward
src.rollout.engine.SamplingParams
src.rollout.native.native_engine
src.rollout.vllm.vllm_engine
src.rollout.vllm_server.vllm_server_engine
src.rollout.vllm.server.vllm_server_engine
src.data.sources.synthetic.Habits
""".split()
"""Those of the configs before the rooms were laid anew, and a class that an override could name."""

SHAPES = {
    "a training": {
        "policy": {"_target_": "src.models.policy_config.PolicyConfig", "path": "~/m", "lora": None},
        "prompt": {"_target_": "src.data.rendering.PromptRenderer", "_partial_": True, "layout": "compact"},
        "data": {
            "train": {
                "_target_": "src.data.sources.mix.MixSource",
                "parts": {"a": {"count": 1, "source": {"_target_": "src.data.sources.synthetic.SyntheticSource"}}},
            }
        },
        "algorithm": {"_target_": "src.models.settings.AlgorithmSettings", "loss": {"clip_low": 0.2}},
        "rollout": {"_target_": "src.rollout.native.native_engine", "_partial_": True},
        "callbacks": {"benchmark": {"_target_": "src.callbacks.benchmark.BenchmarkCallback", "benchmarks": {}}},
        "trainer": {"_target_": "lightning.Trainer", "strategy": {"_target_": "src.models.sharding.ShardedStrategy"}},
        "warm_start": {"_target_": "src.models.warm_start.WarmStart", "sources": [{"_target_": "src.models.lora.X"}]},
    },
    "an evaluation": {
        "benchmark": {"bfcl": {"_target_": "src.evaluation.bfcl.benchmark.Bfcl", "categories": ["all"]}, "other": None},
        "generation": {"_target_": "src.evaluation.answering.GenerationSettings"},
    },
    "a list": [{"_target_": "src.callbacks.hf_export.HFExport"}, 1, "src.models.lora.LoraSettings"],
}


def targets(value) -> list[str]:
    if isinstance(value, dict):
        own = [value["_target_"]] if "_target_" in value else []
        return own + targets(list(value.values()))
    return [target for entry in value for target in targets(entry)] if isinstance(value, list) else []


@pytest.mark.parametrize("old", OLD_TARGETS)
def test_every_old_target_is_there_under_its_new_name(old):
    assert callable(get_object(new_target(old)))
    assert new_target(new_target(old)) == new_target(old)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_saved_config_is_read_with_todays_names(shape, tmp_path):
    OmegaConf.save(OmegaConf.create(SHAPES[shape]), tmp_path / "config.yaml")
    read = OmegaConf.to_container(load_config(tmp_path / "config.yaml"))
    old = targets(SHAPES[shape])
    assert old and targets(read) == [new_target(target) for target in old]
    assert not any(target.startswith(("src.evaluation.", "src.models.lora")) for target in targets(read))
    if shape == "a training":
        assert read["policy"]["lora"] is None
        assert read["algorithm"]["loss"] == {"clip_low": 0.2, "denominator": "all"}  # which it ran with
    if shape == "a list":
        assert read[1:] == [1, "src.models.lora.LoraSettings"]  # only what is a target is changed


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"a": {"old": 1, "b": 2}}, {"a": {"new": 1, "b": 2}}),
        ({"a": {"old": 1, "new": 3}}, {"a": {"new": 3}}),
        ({"a": {"b": 2}}, {"a": {"b": 2}}),
        ({"a": None}, {"a": None}),
        ([1], [1]),
    ],
)
def test_keys_move(config, expected):
    assert with_new_names(config, {"a.old": "a.new"}) == expected


def test_keys_that_are_gone_and_values_with_another_name():
    old = {"rollout": {"cuda_graphs": True, "max_sequences": 8}, "algorithm": {"regions": "published"}}
    assert with_new_names(old) == {
        "rollout": {"max_sequences": 8},
        "algorithm": {"regions": "src.wings.published.regions.published_regions"},
    }
    assert with_new_names({"algorithm": {"regions": "sampled"}}) == {"algorithm": {"regions": "sampled"}}


def test_a_key_that_older_configs_lack_has_what_they_ran_with() -> None:
    assert with_new_names({"policy": {"dtype": "float32"}}) == {"policy": {"dtype": "float32", "dropout": False}}
    assert with_new_names({"policy": {"dropout": True}}) == {"policy": {"dropout": True}}
