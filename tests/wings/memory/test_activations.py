"""Traced memory against arithmetic on a small Llama layer, float32: d=32, 4 heads of 8, 2 key heads, I=48."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from src.models.loading.architecture import load_architecture
from src.models.loading.loading import PolicyConfig, load_model
from src.models.loading.lora import LoraSettings
from src.models.policy import Policy
from src.wings.memory import activations
from src.wings.memory.activations import LiveBytes, ModelTraits, cache_memory, head_memory, row_bound, row_memory
from src.wings.memory.training_parts import RowShape
from tests.architectures.small import small_config

ALONE = RowShape(groups=1, prompt=64, completions=1, completion=17)  # 80 tokens, one causal block
GROUP = RowShape(groups=1, prompt=64, completions=4, completion=17)  # 128 tokens
FLOAT32 = ModelTraits(torch.float32)
SEPARATE = ModelTraits(torch.float32, rows="separate")
BATCH = RowShape(groups=3, prompt=64, completions=1, completion=17)  # three sequences of 80 tokens


def _kept_and_working(config, traits, shape):
    """Of real tensors, all layers: (kept for backward, largest use above it)."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    policy = Policy(model, rows=traits.rows, gradient_checkpointing=traits.checkpointing).train()
    model.requires_grad_(True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as memory:
        hidden = policy.states(shape.row()).hidden
        kept = memory.peak = memory.live
        hidden.backward(torch.zeros_like(hidden))
    return kept, memory.peak - kept


@pytest.fixture(scope="module")
def llama():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return AutoConfig.for_model("llama", head_dim=8, num_hidden_layers=5, vocab_size=100, **sizes)


@pytest.mark.parametrize("shape", [ALONE, GROUP], ids=["one completion", "four"])
def test_a_layer_keeps_what_its_backward_reads(shape, llama):
    # two norms: input and scaled output, and 1/rms        4 d + 2
    # attention: q and its output; k, v; a log-sum-exp      2 q + 2 kv + heads; no key is copied
    # mlp: gate, silu(gate), up, their product              4 I
    floats = 4 * 32 + 2 + 2 * 32 + 2 * 16 + 4 + 4 * 48
    assert row_memory(llama, FLOAT32, shape).kept_layer == shape.tokens * floats * 4


def test_without_fused_norms_a_layer_keeps_their_normalised_input_too(llama):
    fused, own = (row_memory(llama, ModelTraits(torch.float32, cuda=cuda), ALONE).kept_layer for cuda in (False, True))
    assert own - fused == ALONE.tokens * 2 * 32 * 4


def test_checkpointing_keeps_a_layers_input_and_works_with_the_rest(llama):
    plain = row_memory(llama, FLOAT32, GROUP)
    recomputing = row_memory(llama, ModelTraits(torch.float32, checkpointing=True), GROUP)
    assert recomputing.kept_layer == 128 * 32 * 4
    assert plain.kept_layer - 128 * 32 * 4 < recomputing.working <= plain.kept_layer + plain.working
    assert recomputing.forward == plain.forward


def test_selective_checkpointing_keeps_products_and_attention(llama):
    # the layer's input 32; q 32, k and v 16; attention's output 32 and a log-sum-exp of 4 heads; o 32; gate and up 48,
    # down 32
    selective = ModelTraits(torch.float32, checkpointing="selective")
    traced = row_memory(llama, selective, ALONE)
    assert traced.kept_layer == ALONE.tokens * (32 + 32 + 2 * 16 + 32 + 4 + 32 + 2 * 48 + 32) * 4
    kept, working = _kept_and_working(llama, selective, ALONE)
    assert traced.kept(5) == pytest.approx(kept, rel=0.002)
    assert traced.working == pytest.approx(working, rel=0.1)
    plain, full = (row_memory(llama, ModelTraits(torch.float32, checkpointing=on), ALONE) for on in (False, True))
    assert full.kept_layer < traced.kept_layer < plain.kept_layer
    assert traced.forward == plain.forward


def test_precision_and_adapters_change_what_is_kept(llama):
    plain = row_memory(llama, FLOAT32, GROUP).kept_layer
    halved = row_memory(llama, ModelTraits(torch.bfloat16, cuda=True), GROUP).kept_layer
    assert plain / 2 < halved < plain * 0.9  # norms and attention are computed in float32
    weights = 32 * (32 + 16 + 16 + 32 + 3 * 48)  # kept once more in bfloat16, since autocast's cache is off
    mixed = row_memory(llama, ModelTraits(torch.float32, torch.bfloat16), RowShape(1, 1, 1, 1)).kept_layer
    assert weights * 2 < mixed < weights * 2 + 6000
    assert row_memory(llama, ModelTraits(torch.float32, lora=LoraSettings(rank=4)), GROUP).kept_layer > 0


def test_more_tokens_take_more(llama):
    sizes = [row_memory(llama, FLOAT32, RowShape(groups, 64, 4, 17)) for groups in (1, 2, 4)]
    assert sizes[0].kept_layer < sizes[1].kept_layer < sizes[2].kept_layer
    assert sizes[0].forward < sizes[1].forward < sizes[2].forward


def test_the_real_tensors_are_as_large(random_policy):
    """The same count over a forward with data: nothing depends on values."""
    settings = PolicyConfig(path=random_policy, dtype="float32")
    traced = row_memory(load_architecture(settings), FLOAT32, GROUP)
    policy = Policy(load_model(settings)).train()
    row = GROUP.row()
    with LiveBytes() as memory:
        hidden = policy.states(row).hidden
    assert memory.live == pytest.approx(2 * traced.kept_layer + traced.kept_rest, rel=0.002)
    del hidden
    assert memory.live == 0


def test_the_head_holds_one_chunk_a_block_of_it_and_its_gradient():
    # 64 tokens x 100,000 x 4 bytes; a block of 2 MiB is 5 tokens. Scoring: the chunk, and a block's probabilities.
    # Update: the chunk and one of the size for the entropy's gradient, and the sum of the weight's gradients.
    chunk, vocabulary, width = 64, 100_000, 8
    logits, weight, block = chunk * vocabulary * 4, vocabulary * width * 4, 5 * vocabulary * 4
    scoring, update = head_memory(vocabulary, width, torch.float32, chunk, trained=True)
    assert logits + block <= scoring < 1.01 * (logits + block)
    assert 2 * logits + weight <= update < 1.01 * (2 * logits + weight)
    frozen = head_memory(vocabulary, width, torch.float32, chunk, trained=False)
    assert frozen[0] == scoring and weight <= update - frozen[1] < 1.01 * weight
    # On CUDA scoring has two more chunks. Products of bf16 have a gradient of the logits in bf16, and the product that
    # is added to the weight's; under autocast also the weight in bf16.
    on_cuda = head_memory(vocabulary, width, torch.float32, chunk, trained=True, cuda=True)
    assert on_cuda == (scoring + 2 * logits, update)
    in_half = head_memory(vocabulary, width, torch.bfloat16, chunk, trained=True, cuda=True)
    assert in_half == (scoring + 2 * logits, update + logits // 2 + weight)
    mixed = head_memory(vocabulary, width, torch.float32, chunk, True, cuda=True, autocast=torch.bfloat16)
    assert mixed == (in_half[0] + weight // 2, in_half[1] + weight // 2)


def test_a_row_has_the_lengths_that_it_says():
    row = RowShape(2, 10, 3, 5).row()
    assert len(row.input_ids) == 2 * (10 + 3 * 4) and len(row.targets) == 30
    assert [layout.offset for layout in row.layouts] == [0, 22]


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("lfm2", ["conv", "conv", "full_attention", "conv", "full_attention", "conv"]),
        ("qwen3_5_text", ["linear_attention"] * 3 + ["full_attention"] + ["linear_attention"] * 2),
    ],
)
def test_each_layer_of_a_hybrid_counts_as_its_kind(kind, layers):
    config = small_config(kind, layer_types=layers)
    traced = row_memory(config, SEPARATE, BATCH)
    kept, working = _kept_and_working(config, SEPARATE, BATCH)
    assert traced.kept(6) == pytest.approx(kept, rel=0.01)
    assert 0.9 * working < traced.working < 2 * working  # above all that is kept, above what is kept up to that layer


def test_experts_in_float32_keep_what_the_real_ones_keep():
    config = small_config("qwen3_moe", mlp_only_layers=[])
    traced = row_memory(config, FLOAT32, GROUP)
    kept, working = _kept_and_working(config, FLOAT32, GROUP)
    assert traced.kept(2) == pytest.approx(kept, rel=0.01)
    assert traced.working == pytest.approx(working, rel=0.1)


def test_a_batch_keeps_as_much_for_each_sequence():
    config = small_config("falcon_h1")
    one, three = (row_memory(config, SEPARATE, RowShape(count, 64, 1, 17)) for count in (1, 3))
    assert three.kept_layer == pytest.approx(3 * one.kept_layer, rel=0.02)


@pytest.mark.parametrize("kind", ["lfm2", "gpt_neo"])  # gpt_neo keeps its scores, which grow with the square
def test_the_numbers_of_long_sequences_follow_from_short_ones(kind, monkeypatch):
    config, long = small_config(kind), RowShape(2, 200, 1, 41)
    direct = row_memory(config, SEPARATE, long)
    monkeypatch.setattr(activations, "_MOST_OPERATIONS", 0)
    extended = row_memory(config, SEPARATE, long)
    for name in ("kept_layer", "kept_rest", "working", "forward"):
        assert getattr(extended, name) == pytest.approx(getattr(direct, name), rel=0.01)


def test_a_window_costs_nothing_where_flex_attention_takes_it():
    heads = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = AutoConfig.for_model("mistral", sliding_window=16, num_hidden_layers=2, vocab_size=100, **heads)
    in_half = ModelTraits(torch.bfloat16, cuda=True)
    windowed, windowed_on_cpu = row_memory(config, in_half, GROUP), row_memory(config, FLOAT32, GROUP)
    config.sliding_window = None
    assert row_memory(config, in_half, GROUP) == windowed
    assert row_memory(config, FLOAT32, GROUP).forward < windowed_on_cpu.forward


def test_a_cache_holds_keys_values_and_states(llama):
    assert cache_memory(llama, SEPARATE, RowShape(1, 50, 1, 1)) == 50 * 2 * 16 * 4  # 2 key heads of 8
    mamba = small_config("mamba2")
    short, long = (cache_memory(mamba, SEPARATE, RowShape(1, tokens, 1, 1)) for tokens in (20, 90))
    assert short == long > 0  # a state does not grow


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gpt2", "deepseek_v3", "gemma3", "falcon"])
def test_the_bound_is_above_what_is_traced(kind):
    config = small_config(kind)
    for settings in ({"weights": torch.float32}, {"weights": torch.bfloat16, "checkpointing": True}):
        traits = ModelTraits(**settings, rows="separate")
        bound, traced = row_bound(config, traits, BATCH), row_memory(config, traits, BATCH)
        assert traced.kept(2) < bound.kept(2) < 15 * traced.kept(2)
        assert traced.kept(2) + traced.working < bound.kept(2) + bound.working
        assert traced.forward < bound.forward
