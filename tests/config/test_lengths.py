"""The length of a run's engine: of training, of episodes and of benchmarks, at most the model's positions."""

import copy
from pathlib import Path

import pytest

from src.config.lengths import engine_length
from tests.conftest import train_config


@pytest.fixture(scope="module")
def configs():
    lengths = ("data.max_prompt_tokens=400", "sampling.max_new_tokens=112")
    return {name: train_config(Path(), f"experiment={name}", *lengths) for name in ("tiny", "tiny_episodes")}


@pytest.mark.parametrize(
    ("name", "changes", "positions", "length"),
    [
        ("tiny", ["benchmark=null"], 8192, 512),
        ("tiny", ["benchmark=null"], None, 512),
        ("tiny", ["benchmark.synthetic=null"], 8192, 512),
        ("tiny", ["callbacks.benchmark=null"], 8192, 512),
        ("tiny", [], 262_144, 32_768),
        ("tiny", [], 8192, 8192),
        ("tiny", ["callbacks.benchmark.context=700"], 8192, 700),
        ("tiny", ["callbacks.benchmark.context=300"], 8192, 512),
        ("tiny", ["callbacks.benchmark.context=null"], 262_144, 262_144),
        ("tiny", ["callbacks.benchmark.context=null"], None, None),
        ("tiny_episodes", [], 8192, 1000),
        ("tiny_episodes", ["episodes.max_tokens=9000"], 8192, 8192),
        ("tiny_episodes", ["episodes.max_tokens=null"], 8192, 8192),
    ],
)
def test_the_longest_of_what_a_run_asks_for(configs, name, changes, positions, length):
    config = copy.deepcopy(configs[name])
    config.merge_with_dotlist(changes)
    assert engine_length(config, positions) == length
