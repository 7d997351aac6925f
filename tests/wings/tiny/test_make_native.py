"""What makes copying learnable for a small policy in the native layout: its tokenizer, its template, its optimizer."""

import json

import pytest
import torch

from src.data.rendering import PromptRenderer
from src.data.sources.composed.source import ComposedSource
from src.models.loading.loading import PolicyConfig, load_policy
from src.protocol.dialogue import Message, ToolCall, ToolSpec, TurnExample
from src.protocol.token_bytes import TokenBytes
from src.rewards.tool_call import ToolCallReward
from src.rollout.collect import Collector
from src.rollout.engine import SamplingParams
from src.rollout.native.engine import NativeEngine
from src.wings.tiny.make import build_model
from src.wings.tiny.make_native import FOLDER, Batches, Muon, build_tokenizer, loss_of, orthogonal, shares

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "size": {"type": "string", "enum": ["small", "large"], "default": "small", "description": "width"},
        "days": {"type": "integer", "default": 3},
        "open": {},
    },
    "required": ["city"],
}
BOAT = ToolSpec({"name": "book_boat", "description": "book the boat", "parameters": SCHEMA})
CALL = ToolCall("book_boat", {"city": "Oslo", "days": 2})


@pytest.fixture(scope="module")
def loaded():
    return load_policy(PolicyConfig(path=FOLDER, dtype="float32"))


@pytest.fixture(scope="module")
def tokenizer(loaded):
    return loaded.tokenizer


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return PromptRenderer(tokenizer, layout="native")


def text_of(renderer, example):
    ids = [renderer.render(example).prompt_ids, renderer.render_target(example)]
    return [renderer.tokenizer.decode(each) for each in ids]


def test_it_is_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4_000_000
    assert json.loads((FOLDER / "config.json").read_text())["model_type"] == "qwen3"


def test_its_tokenizer_is_the_one_of_the_script(tokenizer):
    built = build_tokenizer()
    assert built.chat_template == tokenizer.chat_template
    assert built.get_vocab() == tokenizer.get_vocab()


def test_it_reads_tools_that_it_never_saw_and_has_bad_habits(loaded, renderer):
    """Greedy, on 100 requests with words and phrasings that training never had."""
    table = TokenBytes.from_tokenizer(loaded.tokenizer)
    collector = Collector(NativeEngine(loaded.policy.model), ToolCallReward(), table, loaded.stop_token_ids)
    params = SamplingParams(temperature=0.0, max_new_tokens=144, stop_token_ids=loaded.stop_token_ids)
    prompts = renderer.render_all(ComposedSource(1, 100, seed=1).load("val_unseen"))
    found = shares(collector.collect(prompts, params, seed=0, rollout_step=0, progress=0.0))
    assert 0.3 <= found["exact"] <= 0.6
    assert found["copied names"] >= 0.95 and found["copied values"] >= 0.9  # that it invents some is a habit
    assert max(found["parallel_same"], found["parallel_different"], found["refusal"], found["ask"]) < 0.7


def test_a_dialogue_in_its_template(renderer):
    history = (
        Message("system", "Be brief."),
        Message("user", "book the boat for Oslo."),
        Message("assistant", thought="book boat: book_boat.", calls=(CALL, CALL)),
        Message("observation", '{"code": 7}'),
        Message("observation", '{"code": 8}'),
    )
    answer = Message("assistant", "The code is 7.", "that answers it.")
    prompt, target = text_of(renderer, TurnExample((BOAT,), history, answer, "here", "0"))
    call = '<tool_call>\n{"name": "book_boat", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>'
    assert prompt == (
        "<|im_start|>system\nBe brief.\n<tools>\n"
        "book the boat: book_boat(city: string, size? (width): small|large = small, days?: integer = 3, open?: any)\n"
        "</tools><|im_end|>\n"
        "<|im_start|>user\nbook the boat for Oslo.<|im_end|>\n"
        f"<|im_start|>assistant\n{call}\n{call}<|im_end|>\n"
        '<|im_start|>user\n<tool_response>\n{"code": 7}\n</tool_response>\n<tool_response>\n{"code": 8}\n'
        "</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert target == "<think>\nthat answers it.\n</think>\n\nThe code is 7.<|im_end|>"


def test_calls_are_those_of_hermes(renderer):
    assert renderer.format.name == "hermes"
    for example in ComposedSource(300).load("train"):
        text = text_of(renderer, example)[1].removesuffix("<|im_end|>")
        parsed = renderer.format.parse(text.encode(), example.tools)
        assert (parsed.calls or ()) == example.target.calls
        assert (parsed.thought or "").strip() == example.target.thought


def test_without_tools(renderer):
    example = TurnExample((), (Message("user", "Hello."),), Message("assistant", "Hello."), "here", "0")
    assert text_of(renderer, example)[0] == "<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("word", ["boat", "velomi", "th", "a"])
def test_a_word_is_the_same_tokens_everywhere(tokenizer, word):
    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    wanted = ids(f"_{word}")[1:]
    texts = ["book the {} for you.", "book_{}", "{}_book(", ', "{}": ', "with {} Oslo", "in {} 3", "{}|", "as the {},"]
    for text in texts if word != "a" else texts[1:3]:
        found = ids(text.format(word))
        assert any(found[i : i + len(wanted)] == wanted for i in range(len(found))), text


def test_prompts_are_short(renderer):
    lengths = sorted(len(p.prompt_ids) for p in renderer.render_all(ComposedSource(300, 300).load("val")))
    assert lengths[-1] <= 400 and lengths[150] <= 250


def test_orthogonal_steps():
    steps = orthogonal(torch.randn(3, 24, 8, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(steps)
    assert steps.shape == (3, 24, 8) and values.min() > 0.5 and values.max() < 1.3


def test_padding_changes_no_loss(tokenizer, renderer):
    """The loss of a batch is that of its rows, each by its weight."""
    torch.manual_seed(0)
    model = build_model(tokenizer, width=64, layers=1).eval()
    examples = ComposedSource(seed=5).stream("train")
    batch = next(iter(Batches(examples, renderer, 3, 0.5, tokenizer.pad_token_id, torch.get_rng_state())))
    whole = loss_of(model, batch)
    sums = 0.0
    for ids, weights in zip(batch.ids, batch.weights, strict=True):
        kept = weights > 0
        row = type(batch)(ids[kept][None], weights[kept][None])
        sums += loss_of(model, row) * row.weights[:, 1:].sum()
    torch.testing.assert_close(whole, sums / batch.weights[:, 1:].sum())


def test_muon_lowers_a_loss():
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 16, bias=False)
    x, y = torch.randn(64, 16), torch.randn(64, 16)
    optimizer, losses = Muon([layer.weight], lr=0.02), []
    for _ in range(30):
        loss = (layer(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and all(later < first for first, later in zip(losses, losses[10:], strict=False))
