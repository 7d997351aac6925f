"""The native engine against plain forwards and transformers' generate, on tiny random models."""

import copy
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from src.models.loading.policy_config import PolicyConfig
from src.rollout.engine import EngineSource, SamplingParams
from src.rollout.native import decoding
from src.rollout.native.engine import NativeEngine, native_engine
from src.rollout.native.sampling import prompt_noise

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def build(kind, **changes):
    torch.manual_seed(0)
    if kind == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**SIZES | {"head_dim": 16, "tie_word_embeddings": True} | changes))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)  # far from uniform, so that attention and position matter
    return model


@pytest.fixture(params=["qwen3", "llama"])
def model(request):
    return build(request.param)


@pytest.fixture
def moved(model, device):
    """The model where a test computes."""
    return model.to(device)


def ragged(*lengths):
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(0, SIZES["vocab_size"], (length,), generator=generator) for length in lengths]


def forward_distributions(model, prompt, completion, temperature):
    ids = torch.cat([prompt, completion.token_ids])[None].to(model.device)
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1].float().cpu() / temperature
    return logits.log_softmax(-1)


def forward_logprobs(model, prompt, completion, temperature=1.0):
    every = forward_distributions(model, prompt, completion, temperature)
    return every.gather(-1, completion.token_ids[:, None])[:, 0]


def forward_entropies(model, prompt, completion, temperature):
    every = forward_distributions(model, prompt, completion, temperature)
    return -(every.exp() * every).sum(-1)


def tokens_of(groups):
    return [[c.token_ids.tolist() for c in group] for group in groups]


# Float32 log-probabilities of one token by two kernels. Some 24 products lie one behind the other, of up to 48 terms
# each: √24 √48 2^-24 = 2e-6 of the hidden state, in a random direction. A logit is its product with a row of the head:
# |h| |w| / √32 = 0.6 of that, 1.2e-6; four standard deviations of a difference of two are 7e-6.
TOLERANCE = 1e-5


def same_tokens(one, other):
    """How many tokens two completions begin with alike."""
    pairs = zip(one.token_ids.tolist(), other.token_ids.tolist(), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one.token_ids), len(other.token_ids)))


def assert_same_completions(found, expected, model, prompts, params, seeds):
    """Token for token; two may part only where rounding decides.

    Log-probabilities within TOLERANCE move a cumulative probability by no more: the sum of p |Δ log p| is at most the
    largest |Δ log p|. So a token is sampled otherwise only where the noise is so near to the edge between two, or where
    two greedy ones are within twice that.
    """
    for prompt, seed, group, others in zip(prompts, seeds, found, expected, strict=True):
        noise = prompt_noise(seed, params.n, params.max_new_tokens)
        for one, other, drawn in zip(group, others, noise, strict=True):
            at = same_tokens(one, other)
            if at == len(one.token_ids) == len(other.token_ids):
                continue
            low, high = sorted((one.token_ids[at].item(), other.token_ids[at].item()))  # an end is at a stop token
            with torch.no_grad():
                ids = torch.cat([prompt, one.token_ids[:at]])[None].to(model.device)
                logits = model(ids).logits[0, -1].double().cpu()
            if params.temperature == 0:
                assert logits.max() - logits[[low, high]].min() < 2 * TOLERANCE
            else:
                cumulative = (logits / params.temperature).softmax(-1).cumsum(-1)
                assert cumulative[low] > drawn[at] - TOLERANCE and cumulative[high - 1] < drawn[at] + TOLERANCE


STOPS = (3, 14, 15, 92, 65, 35)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_logprobs_match_a_plain_forward(moved, temperature):
    prompts = ragged(5, 40, 1, 17)
    params = SamplingParams(n=6, temperature=temperature, max_new_tokens=90, stop_token_ids=STOPS)
    groups = NativeEngine(moved).generate(prompts, params, [1, 2, 3, 4])
    lengths = {len(c.token_ids) for group in groups for c in group}
    assert temperature == 0 or len(lengths) > 8  # completions left the batch at many different steps
    for prompt, group in zip(prompts, groups, strict=True):
        assert len(group) == 6
        for completion in group:
            expected = forward_logprobs(moved, prompt, completion, temperature or 1.0)
            torch.testing.assert_close(completion.logprobs, expected, atol=TOLERANCE, rtol=0)
            if temperature == 0:
                assert completion.entropies is None
            else:
                expected = forward_entropies(moved, prompt, completion, temperature)
                torch.testing.assert_close(completion.entropies, expected, atol=TOLERANCE, rtol=0)


def test_greedy_equals_transformers_generate(moved):
    prompts = ragged(5, 40, 1, 17)
    params = SamplingParams(n=2, temperature=0, max_new_tokens=30, stop_token_ids=(3,))
    for prompt, group in zip(prompts, NativeEngine(moved).generate(prompts, params, [0] * 4), strict=True):
        ids = moved.generate(
            prompt[None].to(moved.device),
            attention_mask=torch.ones_like(prompt[None]).to(moved.device),
            do_sample=False,
            max_new_tokens=30,
            eos_token_id=3,
            pad_token_id=0,
        )[0, len(prompt) :].cpu()
        assert_same_completions([group], [[SimpleNamespace(token_ids=ids)] * 2], moved, [prompt], params, [0])


def test_a_prompts_completions_do_not_depend_on_the_batch(model):
    prompts, seeds = ragged(9, 30, 2, 30, 12), [5, 6, 7, 8, 9]
    params = SamplingParams(n=4, max_new_tokens=25, stop_token_ids=STOPS)
    together = NativeEngine(model).generate(prompts, params, seeds)
    small_chunks = NativeEngine(model, max_sequences=8).generate(prompts, params, seeds)
    assert_same_completions(small_chunks, together, model, prompts, params, seeds)
    for i in (3, 0, 2):
        alone = NativeEngine(model).generate([prompts[i]], params, [seeds[i]])
        assert_same_completions(alone, [together[i]], model, [prompts[i]], params, [seeds[i]])
    reverse = NativeEngine(model, max_batch_tokens=1).generate(prompts[::-1], params, seeds[::-1])
    assert_same_completions(reverse[::-1], together, model, prompts, params, seeds)


def test_seeds_and_completions_differ_and_repeat(model):
    prompt = ragged(9)
    params = SamplingParams(n=8, max_new_tokens=12)
    engine = NativeEngine(model)
    state = torch.get_rng_state()
    first, again, other = (tokens_of(engine.generate(prompt, params, [seed])) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert first == again != other
    assert len({tuple(ids) for ids in first[0]}) == 8


def test_top_k_one_equals_greedy(model):
    prompts = ragged(4, 8)
    params = SamplingParams(n=2, temperature=0, max_new_tokens=20)
    greedy = NativeEngine(model).generate(prompts, params, [0, 0])
    top_one = NativeEngine(model).generate(prompts, SamplingParams(n=2, top_k=1, max_new_tokens=20), [1, 2])
    assert_same_completions(top_one, greedy, model, prompts, params, [0, 0])


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.5), (4, 1.0)])
def test_top_p_and_top_k_restrict_the_support(model, top_k, top_p):
    prompt = ragged(6)
    params = SamplingParams(n=8, top_k=top_k, top_p=top_p, max_new_tokens=15)
    for completion in NativeEngine(model).generate(prompt, params, [3])[0]:
        with torch.no_grad():
            logits = model(torch.cat([prompt[0], completion.token_ids])[None]).logits[0, len(prompt[0]) - 1 : -1]
        probabilities = logits.softmax(-1)
        chosen = probabilities.gather(-1, completion.token_ids[:, None])
        larger = probabilities > chosen * (1 + 2 * TOLERANCE)  # two that are as near may change places
        if top_k:
            assert larger.sum(-1).max() < top_k
        else:
            assert (probabilities * larger).sum(-1).max() < top_p + TOLERANCE


def test_first_token_frequencies_follow_the_softmax(model):
    prompt, count = ragged(7)[0], 8_000
    params = SamplingParams(n=count // 4, max_new_tokens=1)
    groups = NativeEngine(model, max_sequences=count).generate([prompt] * 4, params, [21, 22, 23, 24])
    observed = torch.cat([c.token_ids for group in groups for c in group]).bincount(minlength=97).double()
    with torch.no_grad():
        expected = model(prompt[None]).logits[0, -1].double().softmax(-1) * count
    common = expected >= 5  # the usual rule for a cell; the rare rest is one cell
    cells = [(observed[common], expected[common]), (observed[~common].sum()[None], expected[~common].sum()[None])]
    chi_square = sum(((o - e) ** 2 / e).sum() for o, e in cells if e.sum() >= 5)
    degrees = int(common.sum())
    # mean k, variance 2k: four standard deviations
    assert degrees > 5 and chi_square < degrees + 4 * (2 * degrees) ** 0.5


def test_stop_ids_and_finish_reasons(model):
    prompts = ragged(6, 11)
    params = SamplingParams(n=16, max_new_tokens=10, stop_token_ids=STOPS)
    reasons = set()
    for completion in (c for group in NativeEngine(model).generate(prompts, params, [1, 2]) for c in group):
        ids = completion.token_ids.tolist()
        assert not set(ids[:-1]) & set(STOPS)
        assert completion.finish_reason == ("stop" if ids[-1] in STOPS else "length")
        assert completion.finish_reason == "stop" or len(ids) == 10
        assert len(completion.logprobs) == len(ids)
        reasons.add(completion.finish_reason)
    assert reasons == {"stop", "length"}


def test_a_stop_id_of_zero_is_not_confused_with_unused_places(model):
    params = SamplingParams(n=8, max_new_tokens=6, stop_token_ids=(0,))
    for completion in NativeEngine(model).generate(ragged(6), params, [5])[0]:
        assert (completion.finish_reason == "stop") == (completion.token_ids[-1].item() == 0)


def test_bfloat16_completions_score_alike_in_a_plain_forward(model):
    model = model.bfloat16()
    prompts = ragged(5, 30)
    groups = NativeEngine(model).generate(prompts, SamplingParams(n=4, max_new_tokens=20), [1, 2])
    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            gap = (completion.logprobs - forward_logprobs(model, prompt, completion)).abs()
            assert completion.logprobs.dtype == torch.float32 and gap.mean() < 0.05


def test_the_training_state_comes_back(model):
    model.train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    attention = model.config._attn_implementation
    engine = NativeEngine(model)
    engine.generate(ragged(4), SamplingParams(max_new_tokens=3), [0])
    assert [module.training for module in model.modules()] == before
    assert model.config._attn_implementation == attention
    with pytest.raises(IndexError):  # an id beyond the vocabulary, on its way through the model
        engine.generate([torch.tensor([10_000])], SamplingParams(max_new_tokens=3), [0])
    assert [module.training for module in model.modules()] == before
    assert model.config._attn_implementation == attention
    model(ragged(4)[0][None]).logits.sum().backward()  # and gradients flow


@pytest.mark.parametrize(
    ("prompts", "seeds", "message"),
    [
        ([torch.tensor([1])], [], "one seed for each of 1 prompts, found 0"),
        ([torch.tensor([1]), torch.tensor([], dtype=torch.long)], [0, 0], "prompt 1 to be a non-empty vector"),
        ([torch.ones(1, 4, dtype=torch.long)], [0], r"found shape \(1, 4\)"),
        ([torch.ones(250, dtype=torch.long)], [0], "prompt 0 has 250 tokens.*max_position_embeddings=256"),
    ],
)
def test_bad_requests_are_one_clear_error(prompts, seeds, message):
    with pytest.raises(ValueError, match=message):
        NativeEngine(build("llama")).generate(prompts, SamplingParams(max_new_tokens=7), seeds)


def test_budgets_must_be_positive_and_no_prompt_is_no_work(model):
    with pytest.raises(ValueError, match=r"rollout\.max_sequences: expected at least 1, found 0"):
        NativeEngine(model, max_sequences=0)
    assert NativeEngine(model).generate([], SamplingParams(), []) == []


def test_shared_weights_are_stamped_and_not_copied():
    model = build("qwen3")
    engine = NativeEngine(lambda: model)
    assert engine.weights_version == 0 and engine.model is model

    def untouched():
        raise AssertionError("a shared engine must not gather weights")
        yield

    engine.update_weights(untouched(), version=7)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1.5)
    completion = engine.generate(ragged(5), SamplingParams(max_new_tokens=8), [0])[0][0]
    assert completion.weights_version == engine.weights_version == 7
    torch.testing.assert_close(
        completion.logprobs, forward_logprobs(model, ragged(5)[0], completion), atol=TOLERANCE, rtol=0
    )


def test_owned_weights_are_copied_by_name(model):
    trained = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.1)
    engine = NativeEngine(model, owns_model=True)
    engine.update_weights(trained.state_dict().items(), version=1)
    params = SamplingParams(n=2, max_new_tokens=8)
    group = engine.generate(ragged(5), params, [0])[0]
    assert {c.weights_version for c in group} == {1}
    for completion in group:
        expected = forward_logprobs(trained, ragged(5)[0], completion)
        torch.testing.assert_close(completion.logprobs, expected, atol=TOLERANCE, rtol=0)
    # named_parameters leaves a tied head out: still complete
    engine.update_weights(trained.named_parameters(), version=2)
    assert engine.weights_version == 2


def test_weight_updates_name_what_is_wrong():
    model = build("qwen3")
    engine = NativeEngine(model, owns_model=True)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"unexpected name 'policy\.extra'"):
        engine.update_weights([("policy.extra", torch.zeros(1))], version=3)
    with pytest.raises(ValueError, match=r"1 were missing: model\.norm\.weight"):
        engine.update_weights([item for item in state.items() if item[0] != "model.norm.weight"], version=3)
    with pytest.raises(ValueError, match=r"'model\.norm\.weight': expected shape \(32,\), found \(2,\)"):
        engine.update_weights([("model.norm.weight", torch.zeros(2))], version=3)
    with pytest.raises(ValueError, match=r"'lm_head\.weight' and 'model\.embed_tokens\.weight' are tied"):
        engine.update_weights((state | {"lm_head.weight": state["lm_head.weight"] + 1}).items(), version=3)
    assert engine.weights_version == -1  # as before


def test_a_copy_samples_from_the_weights_that_it_was_given(random_policy):
    """Where the policy is sharded, the engine has a model of its own: same architecture, weights by name."""
    tokenizer_less = AutoModelForCausalLM.from_pretrained(random_policy, dtype=torch.float32).eval()
    engine = native_engine(EngineSource(tokenizer_less, str(random_policy), shared=False), device="cpu")
    assert engine.copies_weights
    engine.update_weights(tokenizer_less.state_dict().items(), 3)
    own = engine.model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in tokenizer_less.state_dict().items())
    prompts, params = [torch.arange(1, 20), torch.arange(5, 12)], SamplingParams(n=2, max_new_tokens=9)
    found = engine.generate(prompts, params, [1, 2])
    assert found[0][0].weights_version == 3
    for prompt, group in zip(prompts, found, strict=True):
        for completion in group:  # within rounding: kernels may depend on where the weights lie in memory
            expected = forward_logprobs(tokenizer_less, prompt, completion)
            torch.testing.assert_close(completion.logprobs, expected, atol=TOLERANCE, rtol=0)
    with torch.no_grad():
        tokenizer_less.get_input_embeddings().weight.mul_(2.0)
    again = engine.generate(prompts, params, [1, 2])
    assert tokens_of(again) == tokens_of(found)  # its own weights stayed
    assert torch.equal(again[1][1].logprobs, found[1][1].logprobs)


def test_a_sharded_policy_cannot_be_called_by_the_engine(random_policy):
    model = AutoModelForCausalLM.from_pretrained(random_policy)
    with pytest.raises(ValueError, match=r"rollout\.owns_model=false: expected true or null"):
        native_engine(EngineSource(model, str(random_policy), shared=False), owns_model=False)


def mixed_source(folder, model, precision="bf16-mixed"):
    return EngineSource.of(model, PolicyConfig(path=folder), precision=precision)


def test_under_a_mixed_precision_float32_weights_are_copied_in_half_at_each_sync(random_policy):
    trained = AutoModelForCausalLM.from_pretrained(random_policy, dtype=torch.float32).eval()
    engine = native_engine(mixed_source(random_policy, trained), device="cpu")
    assert engine.copies_weights and engine.weights_version == -1
    engine.update_weights(trained.state_dict().items(), 0)
    assert {weight.dtype for weight in engine.model.parameters()} == {torch.bfloat16}
    prompts, params = ragged(9, 20), SamplingParams(n=2, max_new_tokens=9)
    outside = engine.generate(prompts, params, [1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.MonkeyPatch.context() as patch:  # the lean decoder takes the steps, also under autocast
            patch.setattr(decoding, "_logits", counted := Counted(decoding._logits))
            inside = engine.generate(prompts, params, [1, 2])
        assert torch.is_autocast_enabled("cpu")
    assert counted.calls == 1  # the prefill
    assert tokens_of(inside) == tokens_of(outside)
    for one, other in zip(chain(*inside), chain(*outside), strict=True):
        assert torch.equal(one.logprobs, other.logprobs)
    with torch.no_grad():
        trained.get_input_embeddings().weight.mul_(3.0)
    engine.update_weights(trained.state_dict().items(), 1)
    assert torch.equal(engine.model.get_input_embeddings().weight, trained.get_input_embeddings().weight.bfloat16())
    (again,) = engine.generate(prompts[:1], params, [1])
    assert tokens_of([again]) != tokens_of(outside[:1])


class Counted:
    """A function and how often it was called."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args):
        self.calls += 1
        return self.function(*args)


def test_who_samples_from_the_trainers_own_weights(random_policy):
    """Weights that have the forwards' type, or get it before training; and others where that is asked for."""
    float32 = AutoModelForCausalLM.from_pretrained(random_policy, dtype=torch.float32)
    half = AutoModelForCausalLM.from_pretrained(random_policy, dtype=torch.bfloat16)
    for model, precision in ((float32, "32-true"), (half, "32-true"), (half, "bf16-mixed")):
        engine = native_engine(mixed_source(random_policy, model, precision))
        assert not engine.copies_weights and engine.model is model
    assert native_engine(mixed_source(random_policy, float32, "bf16-mixed")).copies_weights
    # asked to share, it computes as the trainer does: under the trainer's autocast
    engine = native_engine(mixed_source(random_policy, float32), owns_model=False)
    (prompt,), params = ragged(9), SamplingParams(max_new_tokens=1)
    ((alone,),) = engine.generate([prompt], params, [1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ((mixed,),) = engine.generate([prompt], params, [1])
        ((exact,),) = native_engine(mixed_source(random_policy, float32, "32-true")).generate([prompt], params, [1])
    assert torch.equal(alone.logprobs, exact.logprobs) and not torch.equal(alone.logprobs, mixed.logprobs)
