"""The synthetic corpus: reproducible, disjoint splits, every kind of step, values that can be copied."""

import hashlib
import json
import random
from collections import Counter

import pytest

from src.data.sources.synthetic.domains import TRAINING_DOMAINS, UNSEEN_DOMAINS
from src.data.sources.synthetic.source import KINDS, Habits, SyntheticSource, execute, imperfect
from src.data.templates.published import published_prompt
from src.protocol.dialogue import Message
from src.protocol.formats.rest import step_text

TAGS = {"single", "parallel_same", "parallel_different", "follow_up", "ask", "after_ask", "refusal", "answer"}


@pytest.fixture(scope="module")
def source() -> SyntheticSource:
    return SyntheticSource(num_train=1500, num_val=300, seed=3)


@pytest.fixture(scope="module")
def train(source):
    return source.load("train")


def test_same_arguments_same_examples(source, train):
    assert SyntheticSource(num_train=1500, num_val=300, seed=3).load("train") == train
    assert SyntheticSource(num_train=1500, seed=4).load("train") != train
    assert SyntheticSource(num_train=100, seed=3).load("train") == train[:100]


@pytest.mark.parametrize(
    ("habits", "reasoning", "digest"),
    [
        (None, "brief", "8e2d156b5eff3aea"),
        (Habits(), "brief", "121a2636320aa978"),
        (None, "long", "14072a826d6b23cb"),
        (Habits(), "long", "830457db53cc269c"),
    ],
)
def test_examples_never_change(habits, reasoning, digest):
    """The published tiny policies and results depend on them."""
    written = hashlib.sha256()
    for example in SyntheticSource(num_train=200, seed=11, habits=habits, reasoning=reasoning).load("train"):
        prompt = published_prompt(example.tools, example.history)
        written.update(f"{example.id} {example.tags} {prompt} {step_text(example.target)}\n".encode())
    assert written.hexdigest()[:16] == digest


def test_splits_share_no_request(source, train):
    """Whatever the seeds: a request is held out by its own text."""
    first = lambda examples: {example.history[0].text for example in examples}  # noqa: E731
    other_seed = SyntheticSource(num_train=1500, seed=99).load("train")
    for split in ("val", "val_unseen"):
        assert not first(source.load(split)) & (first(train) | first(other_seed))


def test_unseen_split_has_tools_and_values_of_its_own(source, train):
    tools = lambda examples: {tool.name for example in examples for tool in example.tools}  # noqa: E731
    assert tools(train) <= {tool.name for group in TRAINING_DOMAINS.values() for tool in group}
    assert not tools(train) & tools(source.load("val_unseen"))
    assert len(TRAINING_DOMAINS) >= 12 and len(UNSEEN_DOMAINS) == 4
    assert tools(train) == tools(source.load("val"))


def test_every_kind_of_step_occurs(train):
    counts = Counter(example.tags[0] for example in train)
    assert set(counts) == TAGS
    assert min(counts.values()) > 50


def test_targets_follow_from_the_prompt(train):
    """A call uses an offered tool, all of its parameters, and only values that stand in the prompt."""
    for example in train:
        offered = {tool.name: tool for tool in example.tools}
        prompt = " ".join(_visible(message) for message in example.history)
        for call in example.target.calls:
            assert set(call.parameters) == set(offered[call.name].parameters)
            for value in call.parameters.values():
                assert str(value) in prompt, (example, value)
        assert bool(example.target.calls) != bool(example.target.text)
        assert example.target.thought
        if example.tags == ("refusal",):
            assert not example.target.calls


def test_observations_are_what_the_tools_report(train):
    seen = 0
    for example in train:
        for call_step, observation in zip(example.history, example.history[1:], strict=False):
            if observation.role == "observation":
                results = [execute(call, TRAINING_DOMAINS) for call in call_step.calls]
                assert json.loads(observation.text) == (results[0] if len(results) == 1 else results)
                seen += 1
    assert seen > 100


def test_imperfect_demonstrator_has_its_habits(train):
    always = Habits(1.0, 1.0, 1.0, 1.0)
    rng = random.Random(0)
    for example in train:
        target = imperfect(example, always, rng).target
        if len(example.target.calls) > 1:
            assert target.calls == example.target.calls[:1]
        elif len(example.target.calls) == 1 or example.tags == ("answer",):
            assert not target.calls and target.text
        else:
            assert len(target.calls) == 1 and target.calls[0].name in {tool.name for tool in example.tools}
    never = Habits(0.0, 0.0, 0.0, 0.0)
    assert all(imperfect(example, never, rng) == example for example in train)


def test_habits_touch_training_targets_only():
    habits = Habits(1.0, 1.0, 1.0, 1.0)
    assert SyntheticSource(50, 50, 1, habits=habits).load("val") == SyntheticSource(50, 50, 1).load("val")


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"data\.train\.num_val: expected at least 1, found 0"):
        SyntheticSource(num_val=0)
    with pytest.raises(ValueError, match=r"data.train.kinds: expected some of .*'refusal'.* found \['chat'\]"):
        SyntheticSource(kinds={**KINDS, "chat": 1.0})
    with pytest.raises(ValueError, match=r"split: expected one of .* found 'test'"):
        SyntheticSource().load("test")


def _visible(message: Message) -> str:
    return " ".join([message.text, *(json.dumps(dict(call.parameters)) for call in message.calls)])
