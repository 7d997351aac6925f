"""Long thoughts: the same steps as with brief ones, several times the calls' length, and true of the step."""

import random
import re
from itertools import zip_longest

import pytest
from transformers import AutoTokenizer

from src.data.rendering import PromptRenderer
from src.data.sources.synthetic.domains import WORDINGS
from src.data.sources.synthetic.source import Habits, SyntheticSource
from src.data.sources.synthetic.thoughts import long_thought, spin
from src.protocol.dialogue import Dialogue, Message, ToolCall, ToolSpec, TurnExample
from src.protocol.formats.rest import call_line
from src.wings.tiny.make import FOLDERS

SIZE = 500


@pytest.fixture(scope="module")
def long():
    return SyntheticSource(SIZE, seed=3, reasoning="long").load("train")


@pytest.fixture(scope="module")
def imperfect():
    return SyntheticSource(SIZE, seed=3, reasoning="long", habits=Habits()).load("train")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDERS["brief"])


@pytest.mark.parametrize("habits", [None, Habits()], ids=["expert", "imperfect"])
@pytest.mark.parametrize("split", ["train", "val", "val_unseen"])
def test_only_thoughts_differ_from_brief(habits, split):
    brief, long = (SyntheticSource(60, 60, 5, habits=habits, reasoning=kind).load(split) for kind in ("brief", "long"))
    for one, other in zip_longest(brief, long):
        assert (one.id, one.tags, one.tools, one.history) == (other.id, other.tags, other.tools, other.history)
        assert (one.target.calls, one.target.text) == (other.target.calls, other.target.text)
        assert len(other.target.thought) > 4 * len(one.target.thought)


def test_same_arguments_same_thoughts(long):
    assert SyntheticSource(SIZE, seed=3, reasoning="long").load("train") == long
    assert len({example.target.thought for example in long}) == SIZE


def test_reasoning_is_several_times_as_long_as_the_calls(long, tokenizer):
    def tokens(text):
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    calling = [e for e in long if e.target.calls]
    reasoning = sum(tokens(e.target.thought) for e in calling)
    calls = sum(tokens("\n".join(map(call_line, e.target.calls))) for e in calling)
    assert 4.5 <= reasoning / calls <= 6
    others = [tokens(e.target.thought) for e in long if not e.target.calls]
    assert 0.7 <= (sum(others) / len(others)) / (reasoning / len(calling)) <= 1.2


def test_lengths_fit_the_tiny_policy(long, imperfect, tokenizer):
    renderer = PromptRenderer(tokenizer, "compact")
    for examples in (long, imperfect):
        targets = sorted(len(renderer.render_target(example)) for example in examples)
        assert targets[int(0.99 * SIZE)] < 384 and targets[-1] < 480
        assert max(len(renderer.render(example).prompt_ids) for example in examples) <= 400


def test_a_thought_ends_with_the_calls_that_follow(long, imperfect):
    """The last sentence names them, once each or with their number; every tool on offer is named before."""
    for example in long + imperfect:
        thought, names = example.target.thought, [call.name for call in example.target.calls]
        last = thought.rstrip(".").rsplit(". ", 1)[1] if names else ""
        if len(set(names)) < len(names):
            assert last.endswith(f"{names[0]} {'twice' if len(names) == 2 else 'three times'}")
        elif names:
            assert last.endswith(" and ".join(names))
        assert all(tool.name in thought for tool in example.tools)
        assert not re.search(r"[{}()|]|  |\.\.|\b(\w+) \1\b", thought), thought


def test_thoughts_say_where_the_values_stand():
    """By hand: the flight comes from the result, the passenger from the last request; the other tool does not fit."""
    tools = (
        ToolSpec.of("book_flight", "Book a flight for a passenger.", {"flight_id": {}, "passenger": {}}),
        ToolSpec.of("play_song", "Play a song.", {"song": {}}),
    )
    history = (
        Message("user", "Find flights from Bar to Sol."),
        Message("assistant", calls=(ToolCall("search_flights", {"origin": "Bar", "destination": "Sol"}),)),
        Message("observation", '{"flight_id": "K1234", "price": 99}'),
        Message("user", "Book that flight for Gorfeti."),
    )
    step = Message("assistant", calls=(ToolCall("book_flight", {"flight_id": "K1234", "passenger": "Gorfeti"}),))
    dialogue = Dialogue(tools, (*history, step), "doc", "0")
    for seed in range(20):
        example = TurnExample(tools, history, step, "doc", "0", tags=("follow_up",))
        thought = long_thought(example, dialogue, random.Random(seed))
        assert _said(thought, "result", "flight_id") and _said(thought, "request", "passenger")
        assert not _said(thought, "", "passenger") and not _said(thought, "earlier", "flight_id")
        assert any(_matches(template, thought, tool="play_song") for template in WORDINGS["unfit"])
        assert any(_matches(template, thought, tool="book_flight") for template in WORDINGS["fit"])


def test_imperfect_steps_have_thoughts_of_their_own(imperfect):
    seen = set()
    for example in imperfect:
        thought, (tag,), calls = example.target.thought, example.tags, example.target.calls
        reasons = {
            "first only": (WORDINGS["first_only"], tag.startswith("parallel") and len(calls) == 1),
            "promised": (WORDINGS["promised"], tag in {"single", "follow_up", "after_ask"} and not calls),
            "nearest": (WORDINGS["nearest"], tag == "refusal" and bool(calls)),
        }
        for name, (templates, expected) in reasons.items():
            assert any(_matches(template, thought) for template in templates) == expected, example
            seen |= {name} if expected else set()
        if tag == "ask" and calls:
            assert any(_matches(template, thought) for template in WORDINGS["made_up"]), example
            seen.add("made up")
    assert seen == {"first only", "promised", "nearest", "made up"}


def test_spin_chooses_every_alternative():
    chosen = {spin("(a|b) x (c|d)", random.Random(seed)) for seed in range(50)}
    assert chosen == {"a x c", "a x d", "b x c", "b x d"}


def test_unknown_reasoning_is_refused():
    with pytest.raises(ValueError, match=r"data\.train\.reasoning: expected one of \['brief', 'long'\], found 'none'"):
        SyntheticSource(reasoning="none")


def _said(thought, place, key):
    return any(_matches(template, thought, keys=key) for template in WORDINGS["places"][place])


def _matches(template, thought, **known):
    """Whether the thought has a sentence of this template."""
    pattern = re.escape(template).replace(r"\(", "(?:").replace(r"\)", ")").replace(r"\|", "|")
    pattern = re.sub(r"\\{(\w+)\\}", lambda slot: re.escape(known.get(slot[1], "")) or r"[^.?]+", pattern)
    return re.search(rf"{pattern}(?=[.?]|$)", thought) is not None
