"""Quantised checkpoints: two kinds load as plain weights and are saved as such, the others are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from src.config.policy_checks import check_architecture
from src.errors import ConfigError
from src.models.loading.loading import load_model
from src.models.loading.policy_config import PolicyConfig
from src.wings.exporting.folder import export
from tests.architectures.small import small_config, small_model
from tests.conftest import train_config
from tests.models.loading.test_loading import tokenizer

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
"""Magnitudes of the eight positive four-bit numbers; the fourth bit is the sign."""
E4M3_MAX = 448


def mxfp4(name: str, weight: Tensor, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Random blocks in place of the weight of all experts [E, in, out], and the numbers that they stand for.

    A byte holds two numbers of a row, the first in its low half. 32 of them share the exponent of a power of two, which
    is stored with 127 added. Rows are outputs: plain weights are transposed.
    """
    experts, inputs, outputs = weight.shape
    codes = torch.randint(16, (experts, outputs, inputs // 32, 32), generator=generator)
    exponents = torch.randint(-7, -3, (experts, outputs, inputs // 32), generator=generator)
    blocks = (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)
    signs = torch.where(codes >= 8, -1.0, 1.0)
    numbers = signs * E2M1[codes % 8] * torch.exp2(exponents.float())[..., None]
    stored = {f"{name}_blocks": blocks, f"{name}_scales": (exponents + 127).to(torch.uint8)}
    return stored, numbers.flatten(-2).transpose(1, 2)


def fp8(name: str, weight: Tensor, block: int | None) -> tuple[dict[str, Tensor], Tensor]:
    """A weight [out, in] as 8-bit numbers with a factor for each block of `block`², or one for all; what they are."""
    rows, columns = weight.shape
    size = (rows, columns) if block is None else (min(block, rows), min(block, columns))
    tiles = weight.float().reshape(rows // size[0], size[0], columns // size[1], size[1])
    scale = tiles.abs().amax((1, 3), keepdim=True) / E4M3_MAX
    stored = (tiles / scale).to(torch.float8_e4m3fn)
    scales = scale[:, 0, :, 0] if block is not None else scale.reshape(())
    numbers = (stored.float() * scale).reshape(rows, columns)
    return {name: stored.reshape(rows, columns), f"{name}_scale_inv": scales}, numbers


def gpt_oss(folder: Path) -> dict[str, Tensor]:
    """A small gpt-oss as it is on the hub; its experts' weights by name."""
    export(small_model(small_config("gpt_oss")).bfloat16(), tokenizer(), folder)
    generator = torch.Generator().manual_seed(0)

    def stored(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor] | None:
        return mxfp4(name, weight, generator) if name.endswith(("experts.gate_up_proj", "experts.down_proj")) else None

    return rewrite(folder, stored, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})


def qwen3(folder: Path, *, block: int | None = 128) -> dict[str, Tensor]:
    """A small FP8 Qwen3, and its weights by name. Its layers are two blocks wide."""
    config = small_config("qwen3", hidden_size=128, intermediate_size=256)
    export(small_model(config).bfloat16(), tokenizer(), folder)

    def stored(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor] | None:
        return fp8(name, weight, block) if name.endswith("proj.weight") else None

    settings = {"activation_scheme": "dynamic" if block else "static", "weight_block_size": block and [block, block]}
    return rewrite(folder, stored, {"quant_method": "fp8", **settings})


def rewrite(
    folder: Path,
    stored: Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor] | None],
    settings: dict[str, object],
) -> dict[str, Tensor]:
    """Quantise the files of a folder; the quantised weights in plain numbers."""
    file, plain = folder / "model.safetensors", {}
    tensors: dict[str, Tensor] = {}
    for name, weight in load_file(file).items():
        found = stored(name, weight)
        if found is None:
            tensors[name] = weight
        else:
            tensors |= {key: tensor.contiguous() for key, tensor in found[0].items()}
            plain[name] = found[1]
    save_file(tensors, file, metadata={"format": "pt"})
    set_quantization(folder, settings)
    return plain


def set_quantization(folder: Path, settings: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))


def assert_trains(model: PreTrainedModel) -> None:
    model(input_ids=torch.arange(3, 15)[None]).logits.logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "auto"])
@pytest.mark.parametrize("make", [gpt_oss, qwen3])
def test_quantised_weights_are_read_as_the_numbers_they_stand_for(make, dtype, tmp_path):
    expected = make(tmp_path / "quantised")
    model = load_model(PolicyConfig(path=tmp_path / "quantised", dtype=dtype))
    type_ = torch.float32 if dtype == "float32" else torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {type_}
    weights = model.state_dict()
    for name, numbers in expected.items():
        torch.testing.assert_close(weights[name], numbers.to(type_), rtol=0, atol=0)
    assert_trains(model)


def test_a_factor_for_a_whole_weight_is_read_too(tmp_path):
    """As Mistral's FP8 checkpoints have it."""
    expected = qwen3(tmp_path / "quantised", block=None)
    weights = load_model(PolicyConfig(path=tmp_path / "quantised", dtype="float32")).state_dict()
    for name, numbers in expected.items():
        torch.testing.assert_close(weights[name], numbers, rtol=0, atol=0)


@pytest.mark.parametrize("make", [gpt_oss, qwen3])
def test_what_was_quantised_is_exported_plain(make, tmp_path):
    make(tmp_path / "quantised")
    model = load_model(PolicyConfig(path=tmp_path / "quantised"))
    export(model, tokenizer(), tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
    again = load_model(PolicyConfig(path=tmp_path / "plain")).state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    load_model(PolicyConfig(path=tmp_path / "plain"), on_meta=True)


def test_random_weights_of_a_quantised_architecture_are_plain(tmp_path):
    gpt_oss(tmp_path)
    model = load_model(PolicyConfig(path=tmp_path, weights="random"))
    assert not hasattr(model.config, "quantization_config") and model.dtype == torch.bfloat16
    assert_trains(model)
    assert not hasattr(
        load_model(PolicyConfig(path=tmp_path, weights="random"), on_meta=True).config, "quantization_config"
    )


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "compressed-tensors", None])
def test_other_quantised_weights_are_refused(method, tmp_path):
    export(small_model(small_config("qwen3")), tokenizer(), tmp_path)
    set_quantization(tmp_path, {"quant_method": method} if method else {"load_in_4bit": True})
    found = method or "not given"
    with pytest.raises(ConfigError, match=rf"quantization_config\.quant_method in its config\.json is '{found}'"):
        load_model(PolicyConfig(path=tmp_path))
    with pytest.raises(ConfigError, match=r"expected none, or one of mxfp4, fp8: such weights take no updates"):
        check_architecture(train_config(tmp_path, f"policy.path={tmp_path}"))


@pytest.mark.parametrize("make", [gpt_oss, qwen3])
def test_a_sharded_policy_is_read_from_plain_weights_only(make, tmp_path):
    make(tmp_path)
    message = rf"Load and save it dequantised first:\n  python src/export\.py model={tmp_path} dtype=bfloat16 output="
    with pytest.raises(ConfigError, match=message):
        load_model(PolicyConfig(path=tmp_path), on_meta=True)
    with pytest.raises(ConfigError, match=message):
        check_architecture(train_config(tmp_path, f"policy.path={tmp_path}", "trainer=fsdp"))
