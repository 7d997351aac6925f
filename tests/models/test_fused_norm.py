"""The fused RMSNorm against transformers' own, and where it steps aside."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from src.models.fused_norm import fuse_norms, rms_norm


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 4, 5)])
def test_gradcheck(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.linspace(-1, 2, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-3), (x, weight))


def test_it_is_transformers_norm_in_float32():
    torch.manual_seed(0)
    own, fused = LlamaRMSNorm(64, 1e-5), LlamaRMSNorm(64, 1e-5)
    with torch.no_grad():
        own.weight.uniform_(0.5, 1.5)
    fused.load_state_dict(own.state_dict())
    assert fuse_norms(fused) == 1 and list(fused.state_dict()) == ["weight"]
    found, expected = [], []
    for module, results in ((fused, found), (own, expected)):
        x = torch.randn(7, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = module(x)
        y.backward(torch.randn(7, 64, generator=torch.Generator().manual_seed(2)))
        results += [y.detach(), x.grad, module.weight.grad]
    # The gradient of the weight sums 7 products of two numbers below 3.5. A sum below 16 is rounded by up to 2^-21, so
    # that 7 of them are off by up to 3.3e-6, and two such gradients by 6.7e-6. The other results take fewer roundings.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=2e-6)


def test_in_half_precision_it_is_transformers_own():
    torch.manual_seed(0)
    norm, x = LlamaRMSNorm(64, 1e-5).bfloat16(), torch.randn(7, 64, dtype=torch.bfloat16)
    expected = norm(x)
    fuse_norms(norm)
    assert torch.equal(norm(x), expected)


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}


@pytest.mark.parametrize(
    ("model", "norms"),
    [
        (lambda: LlamaForCausalLM(LlamaConfig(**SIZES)), 5),
        (lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=16)), 9),
    ],
    ids=["llama", "qwen3"],
)
def test_all_norms_of_a_model_are_found(model, norms):
    torch.manual_seed(0)
    model = model()
    ids = torch.arange(12)[None]
    expected = model(ids).logits
    assert fuse_norms(model) == norms
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-6, rtol=1e-5)
