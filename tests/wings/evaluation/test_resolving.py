"""What `model=…` and `policy=…` stand for, and that the weights are the ones asked for."""

import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from src.errors import ConfigError
from src.models.loading.loading import PolicyConfig, load_model
from src.models.loading.lora import LoraSettings
from src.wings.evaluation.answering import find_model
from src.wings.evaluation.resolving import PROMPT_FILE, find_checkpoint, load_source, resolve_model
from src.wings.exporting.folder import export
from tests.conftest import ROOT, eval_config

TINY = ROOT / "src/models/tiny"


def resolved(*overrides: str):
    return resolve_model(eval_config(Path("unused"), *overrides))


def loaded_weights(*overrides: str) -> dict[str, torch.Tensor]:
    return load_source(resolved(*overrides)).model.state_dict()


def checkpoint_weights(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name.removeprefix("policy.model."): tensor for name, tensor in state.items()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.fixture
def run(trained_run, tmp_path) -> Path:
    """A copy of the run to break."""
    return Path(shutil.copytree(trained_run, tmp_path / "copy"))


def edit(run: Path, key: str, value: object) -> None:
    config = OmegaConf.load(run / "config.yaml")
    OmegaConf.update(config, key, value, force_add=True)
    OmegaConf.save(config, run / "config.yaml")


def test_a_policy_by_name_and_its_folder_are_the_same_weights():
    by_name, by_folder = loaded_weights("policy=tiny"), loaded_weights(f"model={TINY}")
    assert_equal(by_name, by_folder)
    saved = load_file(TINY / "model.safetensors")
    assert saved and all(torch.equal(by_name[name], saved[name]) for name in saved)
    source = resolved(f"model={TINY}")
    assert (source.kind, source.name, source.prompt, source.checkpoint) == ("folder", "tiny", {}, None)


def test_run_folder_checkpoint_and_export_are_the_same_weights(trained_run, tmp_path):
    best = checkpoint_weights(trained_run / "checkpoints/best.ckpt")
    last = checkpoint_weights(trained_run / "checkpoints/last.ckpt")
    name = "model.embed_tokens.weight"
    base = load_file(TINY / "model.safetensors")[name]
    assert not torch.equal(last[name], base)
    assert_equal(loaded_weights(f"model={trained_run}"), best)
    assert_equal(loaded_weights(f"model={trained_run}", "checkpoint=last"), last)
    assert_equal(loaded_weights(f"model={trained_run}/checkpoints/last.ckpt"), last)
    loaded = load_source(resolved(f"model={trained_run}", "checkpoint=last.ckpt"))
    export(loaded.model, loaded.tokenizer, tmp_path / "exported")
    assert_equal(loaded_weights(f"model={tmp_path}/exported"), last)
    assert not loaded.model.training and loaded.stop_token_ids == (2,)


def test_an_exported_folder_brings_its_prompt(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "exported")
    (folder / PROMPT_FILE).write_text('{"layout": "compact", "format": null}')
    config = eval_config(tmp_path, f"model={folder}", "prompt.format=rest")
    _, source = find_model(config)
    assert source.prompt == {"layout": "compact", "format": None}
    assert (config.prompt.layout, config.prompt.format) == ("compact", "rest")


def test_a_run_brings_its_prompt_and_policy(trained_run):
    source = resolved(f"model={trained_run}")
    assert source.prompt == {"layout": "compact", "format": None, "chat_template_kwargs": None}
    assert (source.kind, source.name) == ("run", "trained (best)")
    assert source.policy.dtype == "float32" and source.policy.path == str(TINY)
    assert resolved(f"model={trained_run}", "dtype=bfloat16").policy.dtype == "bfloat16"


def test_adapters_come_with_the_checkpoint(run):
    """The base model in the run's config, adapters around it, and a checkpoint in which they say something."""
    settings = {"_target_": "src.models.loading.lora.LoraSettings", "rank": 2, "alpha": 4}
    edit(run, "policy.lora", settings)
    model = load_model(PolicyConfig(path=TINY, dtype="float32", lora=LoraSettings(rank=2, alpha=4)))
    generator = torch.Generator().manual_seed(0)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapters = [name for name in state if ".lora_" in name]
    state |= {name: torch.randn(state[name].shape, generator=generator) for name in adapters}
    path = run / "checkpoints/best.ckpt"
    torch.save({"state_dict": {f"policy.model.{name}": tensor for name, tensor in state.items()}}, path)
    assert adapters
    assert_equal(loaded_weights(f"model={run}"), state)
    edit(run, "policy.lora", None)
    with pytest.raises(ValueError, match=r"does not fit Qwen3ForCausalLM: missing \S+q_proj.weight; .* policy.lora"):
        loaded_weights(f"model={run}")


def test_a_hub_id_is_taken_as_it_is():
    source = resolved("model=Qwen/Qwen3-8B", "policy_options.trust_remote_code=true")
    assert (source.kind, source.name, source.policy.hub_id) == ("hub", "Qwen/Qwen3-8B", "Qwen/Qwen3-8B")
    assert source.policy.dtype == "auto" and source.policy.trust_remote_code


def test_without_a_best_checkpoint_the_last_is_taken(run, caplog):
    (run / "checkpoints/best.ckpt").unlink()
    assert find_checkpoint(run, "best").name == "last.ckpt"
    assert "has no best.ckpt" in caplog.text
    (run / "checkpoints/last.ckpt").unlink()
    with pytest.raises(ConfigError, match=r"checkpoint=best: expected it in .*, found nothing"):
        find_checkpoint(run, "best")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"model, policy: expected exactly one of them, found neither"),
        (["policy=tiny", "model=x/y"], r"expected exactly one of them, found both \(model=x/y\)"),
        (["model=no_such_place"], r"model='no_such_place': expected a run folder, .* found no such file"),
        (["model=src/no_such_run"], r"model='src/no_such_run': .* found no such file"),  # src exists: no hub id
        (
            [f"model={ROOT}/configs/data"],
            r"expected a run folder .* found a folder with .*hammer.yaml",
        ),
        (["model=x/y", "dtype=float16"], r"policy_options: .*policy.dtype: expected one of .* found 'float16'"),
    ],
)
def test_models_that_are_none(overrides, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=message):
        resolved(*overrides)


def test_missing_checkpoints(run):
    with pytest.raises(ConfigError, match=r"checkpoint=best-v1: expected it in .* found best.ckpt, last.ckpt"):
        resolved(f"model={run}", "checkpoint=best-v1")


def test_a_checkpoint_without_its_run(trained_run, tmp_path):
    lost = Path(shutil.copy(trained_run / "checkpoints/last.ckpt", tmp_path))
    with pytest.raises(ConfigError, match=r"expected a checkpoint inside its run folder, found no config.yaml"):
        resolved(f"model={lost}")


def test_a_run_of_another_checkout_finds_the_policies_of_this_one(run):
    edit(run, "paths.root_dir", "/elsewhere/rest")
    edit(run, "policy.path", "/elsewhere/rest/src/models/tiny")
    assert resolved(f"model={run}").policy.path == str(TINY)


def test_a_base_model_that_moved(run):
    edit(run, "policy.path", "/elsewhere/weights")
    with pytest.raises(
        ConfigError, match=r"policy.path in '.*copy/config.yaml': .* '/elsewhere/weights'.*base_path=FOLD"
    ):
        resolved(f"model={run}")
    assert resolved(f"model={run}", f"base_path={TINY}").policy.path == str(TINY)


def test_a_run_config_without_policy_or_of_another_version(run):
    edit(run, "policy.beam_search", 5)
    with pytest.raises(ConfigError, match=r"policy in '.*config.yaml': .*unexpected keyword argument 'beam_search'"):
        resolved(f"model={run}")
    (run / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match=r"config.yaml': expected the keys 'policy' and 'prompt' of a training run"):
        resolved(f"model={run}")


def test_checkpoints_of_another_model_are_refused(run, random_policy):
    with pytest.raises(ValueError, match=r"does not fit Qwen3ForCausalLM: unexpected \S+; .* base_path"):
        loaded_weights(f"model={run}", f"base_path={random_policy}")
    path = run / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    del content["state_dict"]["policy.model.model.norm.weight"]
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"does not fit Qwen3ForCausalLM: missing model.norm.weight\. Is"):
        loaded_weights(f"model={run}", "checkpoint=last")


@pytest.mark.parametrize("kind", ["foreign", "torn", "code"])
def test_files_that_are_no_checkpoint(run, kind):
    path = run / "checkpoints/last.ckpt"
    if kind == "torn":
        path.write_bytes(path.read_bytes()[:10_000])
    elif kind == "foreign":
        torch.save({"weights": torch.ones(1)}, path)
    else:
        torch.save({"state_dict": Path()}, path)  # a class of its own: unpickling calls it
    message = {
        "foreign": r"expected a state_dict with names 'policy.model.…' as src/train.py saves them, found \['weights'\]",
        "torn": r"last.ckpt' cannot be read; is it whole\?",
        "code": r"last.ckpt' cannot be read; is it whole\? PyTorch says: Weights only load failed",
    }[kind]
    with pytest.raises(ValueError, match=message):
        loaded_weights(f"model={run}", "checkpoint=last")
