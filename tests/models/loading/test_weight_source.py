"""Checkpoints whose tensors are not those of their config.json, read whole and tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from src.errors import ConfigError
from src.models.loading.loading import load_policy
from src.models.loading.policy_config import PolicyConfig
from src.wings.exporting.folder import export
from tests.models.loading.test_loading import tokenizer
from tests.models.reference import tiny_model

Tensors = dict[str, torch.Tensor]


def load(folder: Path, on_meta: bool) -> None:
    load_policy(PolicyConfig(path=folder, dtype="float32"), on_meta=on_meta)


def folder_with(tmp_path: Path, change: Callable[[Tensors], object], *, tied: bool = False, **config: object) -> Path:
    export(tiny_model("qwen3", tie_word_embeddings=tied), tokenizer(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | config))
    return tmp_path


def _third_layer(tensors: Tensors) -> None:
    tensors |= {name.replace("layers.1.", "layers.2."): t.clone() for name, t in tensors.items() if "layers.1." in name}


@pytest.mark.parametrize("on_meta", [False, True])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_third_layer, r"11 tensors .*: model\.layers\.2\.input_layernorm\.weight, "),
        (
            lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}),
            r"1 tensors .*: model\.layers\.0\.self_attn\.q_proj\.bias\. Without them it computes something else",
        ),
    ],
)
def test_tensors_that_the_config_leaves_out_are_refused(
    change: Callable[[Tensors], object], named: str, on_meta: bool, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=named):
        load(folder_with(tmp_path, change), on_meta)


@pytest.mark.parametrize("on_meta", [False, True])
def test_tensors_of_something_else_are_told_of(on_meta: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A buffer of an older version, and a layer that predicts further tokens, which the config counts."""

    def change(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.old_scale"] = torch.ones(4)
        tensors["model.layers.2.eh_proj.weight"] = torch.ones(4)

    load(folder_with(tmp_path, change, num_nextn_predict_layers=1), on_meta)
    (message,) = [record.message for record in caplog.records if record.name.startswith("src.models")]
    assert "2 of the tensors are not the policy's" in message and "old_scale, model.layers.2.eh_proj.weight" in message


@pytest.mark.parametrize("on_meta", [False, True])
def test_a_head_that_differs_from_embeddings_which_it_should_be(on_meta: bool, tmp_path: Path) -> None:
    def equal(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    load(folder_with(tmp_path / "equal", equal, tied=True), on_meta)
    with pytest.raises(ConfigError, match=r"differs from the embeddings.* tie_word_embeddings=true"):
        load(folder_with(tmp_path / "other", lambda _: None, tie_word_embeddings=True), on_meta)
