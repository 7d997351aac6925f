"""Traced memory against arithmetic on a small Llama layer, float32: d=32, 4 heads of 8, 2 key heads, I=48."""

import pytest
import torch
from transformers import AutoConfig

from src.models.loading.architecture import load_architecture
from src.models.loading.loading import PolicyConfig, load_model
from src.models.loading.lora import LoraSettings
from src.models.policy import Policy
from src.wings.memory.activations import LiveBytes, ModelTraits, head_memory, row_memory
from src.wings.memory.training_parts import RowShape

ALONE = RowShape(groups=1, prompt=64, completions=1, completion=17)  # 80 tokens, one causal block
GROUP = RowShape(groups=1, prompt=64, completions=4, completion=17)  # 128 tokens
FLOAT32 = ModelTraits(torch.float32)


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


def test_a_row_has_the_lengths_that_it_says():
    row = RowShape(2, 10, 3, 5).row()
    assert len(row.input_ids) == 2 * (10 + 3 * 4) and len(row.targets) == 30
    assert [layout.offset for layout in row.layouts] == [0, 22]
