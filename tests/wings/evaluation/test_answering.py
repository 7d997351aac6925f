"""The tiny policy answers benchmark prompts."""

from pathlib import Path

import pytest
import torch

from src.data.rendering import PromptRenderer
from src.models.loading.loading import PolicyConfig, load_policy
from src.protocol.dialogue import ChatPrompt
from src.protocol.token_bytes import TokenBytes
from src.rollout.engine import SamplingParams
from src.rollout.native.engine import NativeEngine
from src.wings.evaluation.answering import EngineGenerate
from tests.conftest import ROOT

PROMPTS = [
    ChatPrompt("get_weather(city,day)", f"<user> Show me the weather in {city} on May {day}. </user>")
    for day, city in enumerate(["Oslo", "Bar Delfin", "Rome" * 20, "Tan", "Kor" * 5], start=1)
]


class Watched:
    """An engine that notes what it is asked."""

    def __init__(self, engine):
        self.engine, self.calls, self.context = engine, [], engine.context

    def generate(self, prompts, params, seeds):
        self.calls.append(([len(prompt) for prompt in prompts], params.max_new_tokens))
        assert params.temperature == 0 and params.n == 1
        return self.engine.generate(prompts, params, seeds)


@pytest.fixture(scope="module")
def loaded():
    return load_policy(PolicyConfig(path=Path(ROOT, "src/models/tiny"), dtype="float32"))


def _generate(loaded, **options):
    engine = Watched(NativeEngine(loaded.policy.model))
    table = TokenBytes.from_tokenizer(loaded.tokenizer)
    renderer = PromptRenderer(loaded.tokenizer, "compact")
    options = {"max_new_tokens": 40, "context": 1024, **options}
    return EngineGenerate(engine, renderer, table, loaded.stop_token_ids, **options), engine, renderer


# Logits of up to 25 are computed to 1e-5, and the best two are 0.014 apart at the closest: no batch changes an answer.
def test_answers_are_the_engines_greedy_ones_in_batches_longest_first(loaded):
    generate, engine, renderer = _generate(loaded, batch_size=2)
    answers = dict(generate(PROMPTS))
    lengths = [len(renderer.encode_chat(prompt)) for prompt in PROMPTS]
    assert [call[0] for call in engine.calls] == [sorted(lengths, reverse=True)[i : i + 2] for i in (0, 2, 4)]
    params = SamplingParams(temperature=0, max_new_tokens=40, stop_token_ids=loaded.stop_token_ids)
    for index, prompt in enumerate(PROMPTS):
        ((completion,),) = NativeEngine(loaded.policy.model).generate([renderer.encode_chat(prompt)], params, [0])
        answer = answers[index]
        ids = completion.token_ids[:-1] if completion.finish_reason == "stop" else completion.token_ids
        assert answer.text == loaded.tokenizer.decode(ids)
        assert (answer.tokens, answer.finish) == (len(completion.token_ids), completion.finish_reason)
        assert answer.parsed.thought is not None


def test_answers_are_cut_where_the_context_ends(loaded):
    """A context of the longest prompt and 5 tokens: that one gets 5 tokens, and with 1 less than it none at all."""
    _, _, renderer = _generate(loaded)
    lengths = [len(renderer.encode_chat(prompt)) for prompt in PROMPTS]
    longest = lengths.index(max(lengths))
    free, engine, _ = _generate(loaded)
    whole = dict(free(PROMPTS))
    tight, engine, _ = _generate(loaded, context=max(lengths) + 5)
    cut = dict(tight(PROMPTS))
    assert (cut[longest].tokens, cut[longest].finish) == (5, "length")
    assert whole[longest].text.startswith(cut[longest].text)
    assert ([max(lengths)], 5) in engine.calls
    assert all(cut[i] == whole[i] for i in range(len(PROMPTS)) if i != longest and lengths[i] + 40 <= max(lengths) + 5)
    none, _, _ = _generate(loaded, context=max(lengths))
    refused = dict(none(PROMPTS))
    assert (refused[longest].text, refused[longest].tokens, refused[longest].finish) == ("", 0, "context")
    assert refused[longest].parsed.calls is None


def test_no_random_number_is_drawn(loaded):
    generate, _, _ = _generate(loaded)
    before = torch.random.get_rng_state()
    first, second = dict(generate(PROMPTS)), dict(generate(PROMPTS))
    assert torch.equal(before, torch.random.get_rng_state()) and first == second


def test_context_is_the_engines_where_that_is_shorter(loaded):
    assert [_generate(loaded, context=given)[0].context for given in (None, 4096, 1000)] == [1024, 1024, 1000]
