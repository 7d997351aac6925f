"""The corpus `composed`: fixed by its seed, correct by its own tools, and its unseen words stay unseen."""

import random
import re
from dataclasses import replace

import pytest

from src.data.sources.composed.source import (
    GLUE,
    KINDS,
    PHRASINGS,
    ComposedSource,
    Habits,
    imperfect,
    is_held_out_word,
)
from src.data.sources.tools import check_on_offer
from src.errors import ConfigError
from src.protocol.dialogue import Dialogue, Message, ToolCall, ToolSpec, split_turns

ALWAYS = Habits(1.0, 1.0, 1.0, 1.0)
OTHER = set("one twice none answers string integer number boolean true false on off".split())


def spec(name, description, properties, required):
    schema = {"type": "object", "properties": properties, "required": required}
    return ToolSpec({"name": name, "description": description, "parameters": schema})


BOOK = spec("tar", "book the boat", {"city": {"type": "string"}, "days": {"type": "integer", "default": 3}}, ["city"])
SELL = spec("sell_lamp", "sell some lamp", {"price": {"type": "number", "description": "cost"}}, ["price"])


def turns(*messages):
    return Dialogue((BOOK, SELL), messages, "composed", "0"), split_turns(
        Dialogue((BOOK, SELL), messages, "composed", "0")
    )


def changed(tag, dialogue, example, habits=ALWAYS):
    return imperfect(replace(example, tags=(tag,)), dialogue, habits, random.Random(0)).target


def test_the_same_seed_gives_the_same_examples():
    first, again = ComposedSource(60, 20, seed=3), ComposedSource(60, 20, seed=3)
    for split in first.splits():
        assert first.load(split) == again.load(split)
    assert first.load("train") != ComposedSource(60, 20, seed=4).load("train")


def test_splits():
    source = ComposedSource(50, 20)
    assert source.splits() == ("train", "val", "val_unseen")
    assert [len(source.load(split)) for split in source.splits()] == [50, 20, 20]
    with pytest.raises(ValueError, match="val_unseen"):
        source.load("test")


@pytest.mark.parametrize("habits", [None, ALWAYS], ids=["expert", "habits"])
def test_every_call_is_one_that_the_tools_allow(habits):
    source = ComposedSource(1500, 500, habits=habits)
    for split in source.splits():
        for example in source.load(split):
            check_on_offer(example.target.calls, example.tools, example.place, "target")
            names = [tool.name for tool in example.tools]
            assert len(set(names)) == len(names)


def test_training_and_unseen_share_no_word():
    """Words of tools and requests; what is left are the words of the phrasings."""
    found = {}
    for split in ("train", "val", "val_unseen"):
        texts = []
        for example in ComposedSource(800, 400).load(split):
            texts += [str(tool.json["name"]) + " " + " ".join(tool.parameters) for tool in example.tools]
            texts += [message.text for message in example.history if message.role == "user"]
        found[split] = set(re.findall(r"[a-z]{3,}", " ".join(texts).lower())) - {word.lower() for word in GLUE} - OTHER
    assert len(found["train"]) > 2000
    assert not (found["train"] | found["val"]) & found["val_unseen"]
    assert all(map(is_held_out_word, found["val_unseen"]))


def test_no_request_of_val_is_trained_on():
    def requests(split):
        return {example.history[0].text for example in ComposedSource(3000, 300).load(split)}

    assert not requests("train") & requests("val")


@pytest.mark.parametrize("key", ["leads", "articles", "mains", "separators", "links", "roles", "joins", "purposes"])
def test_requests_have_phrasings_of_their_own(key):
    assert not set(PHRASINGS["train"][key]) & set(PHRASINGS["unseen"][key])


def test_values_are_in_the_request():
    """An expert invents nothing: each value of a first step was said."""
    for example in ComposedSource(1000, 10).load("train"):
        said = " ".join(message.text for message in example.history)
        for call in example.target.calls:
            for value in call.parameters.values():
                assert isinstance(value, bool) or str(value) in said


def test_tags_say_what_kind_of_step_it_is():
    by_tag = {}
    for example in ComposedSource(2000, 10).load("train"):
        by_tag.setdefault(example.tags[0], []).append(example.target)
    assert set(by_tag) == {*KINDS, "answer", "after_ask"}
    for tag, targets in by_tag.items():
        wanted = {"parallel_same": 2, "parallel_different": 2, "refusal": 0, "ask": 0, "answer": 0}.get(tag, 1)
        assert {len(target.calls) for target in targets} == {wanted}, tag
        assert all(target.thought for target in targets)
        assert all(bool(target.text) == (wanted == 0) for target in targets)
    assert all(len({call.name for call in target.calls}) == 1 for target in by_tag["parallel_same"])
    assert all(len({call.name for call in target.calls}) == 2 for target in by_tag["parallel_different"])


def test_a_refused_purpose_is_on_no_tool():
    for example in ComposedSource(2000, 10, kinds={"refusal": 1.0}).load("train"):
        verb, noun = example.target.thought.removesuffix(": none.").split()
        assert not any({verb, noun} <= set(tool.description.split()) for tool in example.tools)


def test_a_demonstrator_makes_only_the_first_call():
    calls = (ToolCall("tar", {"city": "Oslo", "days": 2}), ToolCall("sell_lamp", {"price": 2.5}))
    asked = Message("user", "book the boat of Oslo and also sell the lamp.")
    thought = "book boat: tar; sell lamp: sell_lamp."
    dialogue, (example,) = turns(asked, Message("assistant", thought=thought, calls=calls))
    target = changed("parallel_different", dialogue, example)
    assert (target.thought, target.calls, target.text) == ("book boat: tar.", calls[:1], "")


def test_a_demonstrator_fills_optional_parameters():
    call = ToolCall("tar", {"city": "Oslo"})
    dialogue, (example,) = turns(
        Message("user", "book the boat of Oslo."), Message("assistant", thought="book boat: tar.", calls=(call,))
    )
    assert changed("single", dialogue, example).calls == (ToolCall("tar", {"city": "Oslo", "days": 3}),)
    assert changed("single", dialogue, example, Habits(1, 0, 1, 1)) == example.target


def test_a_demonstrator_calls_although_no_tool_fits():
    refused = Message("assistant", "I have no tool for that.", "wash dog: none.")
    dialogue, (example,) = turns(Message("user", "wash the dog."), refused)
    target = changed("refusal", dialogue, example)
    (call,) = target.calls
    assert target.thought == f"wash dog: {call.name}." and not target.text
    check_on_offer(target.calls, example.tools, "here", "target")


def test_a_demonstrator_invents_what_is_missing():
    """The label of the missing parameter is its description: `cost`, key `price`."""
    asked = Message("assistant", "I still need the cost.", "sell lamp: sell_lamp without cost.")
    step = Message("assistant", thought="sell lamp: sell_lamp.", calls=(ToolCall("sell_lamp", {"price": 2.5}),))
    dialogue, (first, second) = turns(Message("user", "sell the lamp."), asked, Message("user", "2.5, please."), step)
    target = changed("ask", dialogue, first)
    assert target.thought == "sell lamp: sell_lamp." and not target.text
    (call,) = target.calls
    assert call.name == "sell_lamp" and set(call.parameters) == {"price"} and call.parameters["price"] != 2.5
    assert changed("after_ask", dialogue, second) == second.target


def test_validation_is_the_experts():
    for split in ("val", "val_unseen"):
        assert ComposedSource(1, 50, habits=ALWAYS).load(split) == ComposedSource(1, 50).load(split)
    assert ComposedSource(50, 1, habits=ALWAYS).load("train") != ComposedSource(50, 1).load("train")


@pytest.mark.parametrize("settings", [{"num_train": 0}, {"num_val": 0}, {"kinds": {"tripled": 1.0}}])
def test_settings_that_it_refuses(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ComposedSource(**settings)
