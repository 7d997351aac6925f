"""The searches in configs: one space, which holds each experiment's own values."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from src.config.checks import CONFIGS
from src.config.rules import check_config
from src.wings.sweeping.search import defaults, read_settings, read_space
from tests.conftest import ROOT

SEARCHES = {"tiny": None, "qwen3_8b": "Qwen/Qwen3-8B", "llama3_2_3b": "meta-llama/Llama-3.2-3B-Instruct"}


@pytest.fixture
def composed(tmp_path, monkeypatch):
    """A multirun's config, as the sweeper gets it."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    monkeypatch.setenv("PROJECT_ROOT", str(ROOT))

    def make(*overrides: str):
        with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
            config = compose("train.yaml", overrides=list(overrides), return_hydra_config=True)
        config.hydra.runtime.output_dir = str(tmp_path)
        HydraConfig.instance().set_config(config)
        return config

    return make


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_holds_its_experiments_values(name, composed):
    config = composed(f"hparams_search={name}")
    settings = read_settings(config.hydra.sweeper)
    space = read_space(settings.params, [f"hparams_search={name}"])
    assert len(space.distributions) == 8
    first = defaults(config, space)
    assert first["algorithm.weighting.factors.tool_name"] == 1.2 and first["algorithm.loss.clip_high"] == 0.2
    config.algorithm.loss.clip_high = 0.3
    assert config.algorithm.loss.clip_low == 0.3
    assert config.policy.get("hub_id") == SEARCHES[name]
    assert config.updates.rollout_steps % config.trainer.val_check_interval == 0  # its last step is validated


def test_searches_share_the_space(composed):
    keys = [set(composed(f"hparams_search={name}").hydra.sweeper.params) for name in SEARCHES]
    assert keys[0] == keys[1] == keys[2]


def test_the_search_of_make_sweep_can_train(composed):
    config = composed("hparams_search=tiny")
    del config.hydra
    check_config(config)


def test_every_search_is_tested():
    found = {path.stem for path in Path(CONFIGS / "hparams_search").glob("*.yaml")}
    assert found == {*SEARCHES, "rest", "compare"}  # the shared part, and Hydra's own sweeper: tests/test_compare.py
