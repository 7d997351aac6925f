"""Weights out of checkpoints that are folders of shards; `test_resolving.py` has those of files."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from src.errors import ConfigError
from src.models.checkpoints.reading import Progress, checkpoint_digest, checkpoint_progress, is_sharded, load_checkpoint
from src.models.loading.loading import PolicyConfig, load_model
from src.models.loading.lora import LoraSettings, merged_named_tensors
from src.wings.evaluation.resolving import find_checkpoint, load_source, resolve_model
from tests.conftest import ROOT, eval_config

TINY = ROOT / "src/models/tiny"
SCRIPT = ROOT / "tests/models/checkpoints/save_shards.py"
NORM = "policy.model.model.norm.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """`last.ckpt` by two ranks of Lightning's ModelParallelStrategy, adapters included, and `full.pt`, its weights."""
    folder = tmp_path_factory.mktemp("sharded")
    done = subprocess.run([sys.executable, SCRIPT, "2", folder], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def adapted(rank: int = 2, dtype: str = "float32"):
    return load_model(PolicyConfig(path=TINY, dtype=dtype, lora=LoraSettings(rank=rank)))


@pytest.fixture
def shards(trained_run, tmp_path) -> Path:
    """A run whose `last.ckpt` is a folder, in Lightning's layout, with an optimizer and a reference in it; to break."""
    run = tmp_path / "run"
    shutil.copytree(trained_run, run, ignore=shutil.ignore_patterns("*.ckpt"))
    rewrite(run, torch.load(trained_run / "checkpoints/last.ckpt", weights_only=True)["state_dict"])
    return run


def rewrite(run: Path, state: dict[str, torch.Tensor]) -> None:
    folder = run / "checkpoints/last.ckpt"
    shutil.rmtree(folder, ignore_errors=True)
    extra = {"reference.model/norm/weight": torch.zeros(3)}
    optimizer = {"state": {"x": {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    dcp.save({"state_dict": state | extra, "optimizer_0": optimizer}, checkpoint_id=folder, no_dist=True)
    torch.save({"rollout_step": 1, "global_step": 2}, folder / "meta.pt")


def resolved(*overrides: str):
    return resolve_model(eval_config(Path("unused"), *overrides))


@pytest.mark.slow
def test_what_two_ranks_saved_is_what_they_had(saved):
    model = adapted()
    load_checkpoint(model, saved / "last.ckpt")
    gathered = torch.load(saved / "full.pt", weights_only=True)
    merged = dict(merged_named_tensors(model))
    assert merged.keys() == gathered.keys()
    for name, tensor in gathered.items():  # W + s (b a + b' a'), all below 1, merged once with two ranks, once with one
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=5e-7, msg=name)  # 4 roundings of 2^-24 each
    untrained = dict(merged_named_tensors(adapted()))
    assert not torch.equal(merged["model.layers.0.mlp.up_proj.weight"], untrained["model.layers.0.mlp.up_proj.weight"])
    assert checkpoint_progress(saved / "last.ckpt") == Progress(rollout_steps=2, optimizer_steps=2)


@pytest.mark.slow
def test_shards_that_are_converted_before_they_are_gathered_are_the_same_weights(saved):
    full, half = (torch.load(saved / f"{name}.pt", weights_only=True) for name in ("full", "half"))
    assert full.keys() == half.keys()
    for name, tensor in half.items():  # what adapters are merged into stays exact until it is merged
        assert tensor.dtype == (torch.float32 if "_proj" in name else torch.bfloat16), name
        assert torch.equal(tensor, full[name].to(tensor.dtype)), name


@pytest.mark.slow
def test_frozen_weights_may_be_missing_and_adapters_may_not(saved, tmp_path):
    model = adapted()
    load_checkpoint(model, saved / "last.ckpt")
    adapters = {f"policy.model.{name}": tensor for name, tensor in model.state_dict().items() if ".lora_" in name}
    torch.save({"state_dict": adapters}, tmp_path / "adapters.ckpt")
    fresh = adapted()
    load_checkpoint(fresh, tmp_path / "adapters.ckpt")
    expected = model.state_dict()
    assert [name for name, tensor in fresh.state_dict().items() if not torch.equal(tensor, expected[name])] == []
    adapters.popitem()
    torch.save({"state_dict": adapters}, tmp_path / "adapters.ckpt")
    with pytest.raises(ValueError, match=r"missing model.layers.\d+.mlp.down_proj.lora_B.default.weight\. Is"):
        load_checkpoint(fresh, tmp_path / "adapters.ckpt")


@pytest.mark.slow
def test_weights_are_cast_to_the_models_dtype(saved):
    model = adapted(dtype="bfloat16")
    load_checkpoint(model, saved / "last.ckpt")
    name = "model.layers.0.mlp.up_proj.lora_A.default.weight"
    assert model.state_dict()[name].dtype == torch.float32  # adapters stay so
    assert model.state_dict()["model.norm.weight"].dtype == torch.bfloat16


def test_a_run_with_shards_is_a_run_like_any(shards, trained_run):
    expected = torch.load(trained_run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    folder = shards / "checkpoints/last.ckpt"
    assert find_checkpoint(shards, "best") == folder  # there is no best one
    for model in (shards, folder):
        source = resolved(f"model={model}", "checkpoint=last")
        assert source.checkpoint == folder and source.prompt["layout"] == "compact"
        found = load_source(source).model.state_dict()
        assert [name for name in found if not torch.equal(found[name], expected[f"policy.model.{name}"])] == []
    assert is_sharded(folder) and not is_sharded(trained_run / "checkpoints/last.ckpt") and not is_sharded(shards)


def test_a_checkpoint_of_another_model_is_refused(shards, trained_run):
    state = torch.load(trained_run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for wrong, message in (
        ({**state, NORM: torch.ones(7)}, r"model.norm.weight has shape \(7,\) instead of \(128,\)"),
        ({name: tensor for name, tensor in state.items() if name != NORM}, r"missing model.norm.weight\. Is"),
        ({**state, "policy.model.more": torch.ones(1)}, r"unexpected more\. Is config.yaml"),
    ):
        rewrite(shards, wrong)
        with pytest.raises(ValueError, match=rf"last.ckpt' does not fit Qwen3ForCausalLM: {message}"):
            load_source(resolved(f"model={shards}"))
    rewrite(shards, {"model.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"expected a state_dict with names 'policy.model.…' .* found \['model.weight"):
        load_source(resolved(f"model={shards}"))


@pytest.mark.slow
def test_adapters_of_another_rank_are_refused(saved):
    with pytest.raises(ValueError, match=r"lora_A.default.weight has shape \(2, 128\) instead of \(3, 128\)"):
        load_checkpoint(adapted(rank=3), saved / "last.ckpt")


class Code:
    def __reduce__(self):
        return (os.getcwd, ())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cut off", "no shard", "short shard", "damaged", "no rank", "torn", "code"])
def test_broken_folders(saved, tmp_path, kind):
    folder = Path(shutil.copytree(saved / "last.ckpt", tmp_path / "last.ckpt"))
    metadata, shard = folder / ".metadata", folder / "__1_0.distcp"
    if kind == "cut off":
        metadata.unlink()
    elif kind == "no shard":
        shard.unlink()
    elif kind == "short shard":
        shard.write_bytes(shard.read_bytes()[:1000])
    elif kind == "damaged":
        shard.write_bytes(bytes(shard.stat().st_size))
    elif kind == "no rank":
        content = pickle.loads(metadata.read_bytes())
        content.storage_data = {i: s for i, s in content.storage_data.items() if s.relative_path != shard.name}
        metadata.write_bytes(pickle.dumps(content))
    elif kind == "torn":
        metadata.write_bytes(metadata.read_bytes()[:500])
    else:
        metadata.write_bytes(pickle.dumps(Code()))
    message = {
        "cut off": r"is not whole: no \.metadata, which is written last: was saving it cut off\?",
        "no shard": r"is not whole: '__1_0.distcp' is missing, expected at least \d+ bytes\.",
        "short shard": r"is not whole: '__1_0.distcp' has 1000 bytes, expected at least \d+ bytes\.",
        "damaged": r"cannot be read: a shard cannot be read: ",
        "no rank": r"is not whole: \S+ has 1 of its 2 parts; were all ranks' files copied\?",
        "torn": r"is not whole: its \.metadata cannot be read: ",
        "code": r"is not whole: its \.metadata cannot be read: posix.getcwd is no part of a checkpoint's metadata",
    }[kind]
    with pytest.raises(ValueError, match=rf"checkpoint '.*last.ckpt' {message}"):
        load_checkpoint(adapted(), folder)
    with pytest.raises(ConfigError, match=r"last.ckpt': expected a whole folder of shards: "):
        checkpoint_digest(folder)


def test_the_digest_is_that_of_the_weights(shards, tmp_path, trained_run):
    state = torch.load(trained_run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    folder = shards / "checkpoints/last.ckpt"
    first = checkpoint_digest(folder)
    assert checkpoint_digest(Path(shutil.copytree(folder, tmp_path / "moved.ckpt"))) == first
    rewrite(shards, state)
    assert checkpoint_digest(folder) == first
    state[NORM][5] += 1e-3
    rewrite(shards, state)
    assert checkpoint_digest(folder) != first


def test_progress_has_the_date_of_the_prompts(tmp_path):
    state = {"rollout_step": 3, "global_step": 6, "ToolDialogueDataModule": {"date": "2025-02-03"}}
    torch.save(state, tmp_path / "dated.ckpt")
    assert checkpoint_progress(tmp_path / "dated.ckpt") == Progress(3, 6, "2025-02-03")


def test_progress_of_what_is_no_checkpoint_of_a_run(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other.ckpt': expected the keys rollout_step and global_step"):
        checkpoint_progress(tmp_path / "other.ckpt")
