"""Fixtures that several rooms use."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict

yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Hydra composes hundreds of configs here; libyaml reads the same as the parser in Python, and faster."""
ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT / ".." / "shared" / "data"

needs_shared_data = pytest.mark.skipif(
    not SHARED_DATA.exists(), reason="the real data (rlla, API-Bank) is not beside the checkout, in ../shared/data"
)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where a test computes: on the CPU, and on a GPU in `make test-gpu`."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return SHARED_DATA


@pytest.fixture(scope="session")
def random_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: two-layer Qwen3 with random weights, room for published prompts, the tiny policy's tokenizer."""
    from src.wings.exporting.folder import export
    from src.wings.tiny.make import build_model, build_tokenizer

    folder = tmp_path_factory.mktemp("random_policy")
    tokenizer = build_tokenizer(vocab_size=512, examples=300)
    torch.manual_seed(0)
    export(build_model(tokenizer, width=64, layers=2, positions=8192), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one rollout step from the tiny policy, with a learning rate that changes what it says."""
    from src.train import train

    folder = tmp_path_factory.mktemp("run") / "trained"
    folder.mkdir()
    strong = ("reward._target_=tests.models.even_reward.EvenReward", "optimizer.learning_rate=5.0e-3")
    train(train_config(folder, *SMALL, *strong, "optimizer.warmup_steps=0", "sampling.n=4", "data.train.num_train=50"))
    return folder


def published_corpus(path: Path, count: int) -> Path:
    """Write records in the layout of the published training mix, by hand, and return the file."""
    records = [
        {
            "instruction": f"**Available Tools**\n1. Name: tool_{i}\nDescription: d.\nParameters: {{}}",
            "input": f"**Dialogue Records History**\n<user> Call tool {i}. </user>",
            "output": "<think> It fits. </think>\n<tool_call>\n"
            f'{{"name": "tool_{i}", "parameters": {{}}}}\n</tool_call>',
        }
        for i in range(count)
    ]
    path.write_text(json.dumps(records))
    return path


def train_config(folder: Path, *overrides: str) -> DictConfig:
    """The composed training config, as `python src/train.py` would see it, with its run folder at `folder`."""
    return _composed("train.yaml", folder, overrides)


def eval_config(folder: Path, *overrides: str) -> DictConfig:
    """The composed evaluation config, as `python src/eval.py` would see it, with its folder at `folder`."""
    return _composed("eval.yaml", folder, overrides)


def chat_config(folder: Path, *overrides: str) -> DictConfig:
    """The composed configuration of a chat, as `python src/chat.py` would see it."""
    return _composed("chat.yaml", folder, overrides)


def _composed(name: str, folder: Path, overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
        config = compose(name, overrides=list(overrides), return_hydra_config=False)
    with open_dict(config):
        config.paths.root_dir = str(ROOT)
        config.paths.output_dir = str(folder)
        config.paths.cache_dir = str(folder / "cache") if folder != Path() else None  # no folder: nothing is written
    return config


FEW_EXAMPLES = ("data.train.num_train=100", "data.train.num_val=20")
"""Of the generated corpus: writing and rendering all 4,600 of its examples takes longer than a short training."""
HARDLY_VALIDATED = ("validate_at_start=false", "data.val_splits=[val]")
"""For tests of what a run does between its validations."""
SMALL = (
    *FEW_EXAMPLES,
    "updates.rollout_steps=1",
    "updates.prompts_per_minibatch=2",
    "data.prompts_per_step=4",
    "data.limit_val=2",
    "sampling.n=2",
    "sampling.max_new_tokens=12",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.val_check_interval=1",
    "callbacks.progress_bar=null",
    "trainer.enable_progress_bar=false",
    "callbacks.rollout_log.every_n_steps=1",
    "benchmark=[]",
    "logger=csv",
    "preflight.action=off",
)
"""Overrides that make any experiment on the generated corpus a matter of seconds; of another, without FEW_EXAMPLES."""
