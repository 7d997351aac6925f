"""Generated worlds: what plays earn, worked out by hand; right plays of every kind; answers of any kind."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from statistics import median
from typing import Any

import pytest
from transformers import AutoTokenizer

from src.data.datamodule import ToolDialogueDataModule
from src.data.rendering import PromptRenderer
from src.data.sources.checks import TargetCheck
from src.data.sources.composed.source import GLUE, is_held_out_word
from src.data.sources.tools import check_on_offer
from src.environments.generated.author import KINDS, PHRASINGS, Author, domains_of
from src.environments.generated.domains import DOMAINS, FREE
from src.environments.generated.environment import GeneratedEnvironment, GeneratedEpisode
from src.environments.generated.scenario import CallError, Kind, Scenario, Tool, Turn, calls_of
from src.environments.generated.source import EXPERT, GeneratedSource, Habits, gold, parsed, play
from src.environments.protocol import Environment, EpisodeScore
from src.errors import ConfigError
from src.protocol.dialogue import Message, ToolCall, ToolSpec, split_turns
from src.protocol.formats.hermes import Hermes
from src.protocol.token_bytes import TokenBytes
from src.protocol.types import ParsedResponse
from src.rewards.tool_call import ToolCallReward
from tests.conftest import ROOT

SPLITS = ("train", "val", "val_unseen")
ACCOUNT = Kind(
    DOMAINS["accounts"],
    "account",
    {"id": "key", "name": "owner", "state": "balance", "act": "amount", "other": "sum"},
    (),
    {"act": "pay", "other": "fund"},
)
ERRORS = {
    "first": "first {tool}",
    "first_with": "first {tool} with {value}",
    "instead": "use {tool}",
    "elsewhere": "take {value}",
    "look": "see {tool} for the {state}",
    "refused": "no",
    "missing": "no such {label}",
}
FIND = ToolCall("find", {"owner": "Ada"})
LOOK = ToolCall("look", {"key": "k1"})
DONE = Message("assistant", "Done.")


def tool(role: str, kind: Kind = ACCOUNT) -> Tool:
    types = {key: {"type": "integer" if key in ("amount", "sum") else "string"} for key in kind.keys(role)}
    schema = {"type": "object", "properties": types, "required": list(types)}
    return Tool(ToolSpec({"name": role, "description": role, "parameters": schema}), kind, role)


def scenario(*turns: Turn, balance: int = 50) -> Scenario:
    records = {
        "k1": {"kind": "account", "name": "Ada", "state": balance},
        "k2": {"kind": "account", "name": "Bob", "state": 20},
    }
    tools = {role: tool(role) for role in ("find", "look", "act", "other")}
    return Scenario(tools, records, turns, ERRORS, "Done.")


def call(*calls: ToolCall) -> Message:
    return Message("assistant", calls=calls)


def pay(key: str, amount: Any) -> ToolCall:
    return ToolCall("act", {"key": key, "amount": amount})


def fund(key: str, amount: int) -> ToolCall:
    return ToolCall("other", {"key": key, "sum": amount})


CHAIN = scenario(Turn("Pay 5 from Ada.", (call(FIND), call(pay("k1", 5)), DONE)))
RECOVER = scenario(
    Turn("Pay 60 from k1.", (call(pay("k1", 60)), call(fund("k1", 10)), call(pay("k1", 60)), DONE)), balance=50
)
FOLLOW = scenario(
    Turn("The balance of k1?", (call(LOOK), Message("assistant", "It is 50.")), wanted=("50",)),
    Turn("Now pay 5 from it.", (call(pay("k1", 5)), DONE)),
)
REFUSAL = scenario(Turn("Close k1.", (Message("assistant", "I have no tool for that."),)))


def played(world: Scenario, *steps: Message) -> tuple[GeneratedEpisode, list[str]]:
    """The episode behind some answers, and all that it said."""
    episode = GeneratedEpisode(world)
    seen = [message.text for message in episode.observe()]
    for step in steps:
        episode.act(parsed(step))
        seen += [message.text for message in episode.observe()]
    return episode, seen


def score(world: Scenario, *steps: Message) -> EpisodeScore:
    episode, _ = played(world, *steps)
    found = episode.score()
    assert sum(found.turns) == found.total and len(found.turns) == len(steps)
    return found


def close_to(*values: float) -> Any:
    return pytest.approx(values, abs=2e-6)


def test_a_right_play_earns_all_a_goal_at_a_time():
    """Three goals: the lookup, the change of the balance, the words behind it."""
    found = score(CHAIN, call(FIND), call(pay("k1", 5)), DONE)
    assert (found.total, found.success, found.parts) == (1.0, True, {"state": 1.0, "calls": 1.0, "answer": 1.0})
    assert found.turns == close_to(1 / 3, 1 / 3, 1 / 3)


def test_the_first_call_alone_earns_its_goal():
    found = score(CHAIN, call(FIND), DONE)
    assert found.turns == close_to(1 / 3, 0) and not found.success
    assert found.parts == {"state": 0.0, "calls": 0.5, "answer": 0.0}


def test_words_without_calls_earn_nothing():
    assert score(CHAIN, DONE).total == 0 and score(CHAIN, DONE).parts == {"state": 0.0, "calls": 0.0, "answer": 0.0}


def test_a_stopped_episode_has_what_it_reached():
    found = score(CHAIN, call(FIND), call(pay("k1", 5)))
    assert found.turns == close_to(1 / 3, 1 / 3) and not found.success and found.parts["answer"] == 0


def test_a_wrong_change_costs_the_answer_that_made_it():
    """2/3 are reached, half is taken off, and words over a wrong state are none."""
    found = score(CHAIN, call(FIND), call(pay("k1", 5)), call(fund("k2", 7)), DONE)
    assert found.turns == close_to(1 / 3, 1 / 3, -1 / 2, 0) and found.total == pytest.approx(1 / 6, abs=2e-6)
    assert found.parts == {"state": 1 / 2, "calls": 2 / 3, "answer": 0.0}  # one change of two, two calls of three


def test_a_call_made_twice_changes_too_much():
    found = score(CHAIN, call(FIND), call(pay("k1", 5), pay("k1", 5)), DONE)
    assert found.total == 0 and found.parts["state"] == 0 and not found.success
    assert score(CHAIN, call(FIND), call(FIND), call(pay("k1", 5)), DONE).success  # a lookup does no harm


def test_what_was_put_back_still_costs():
    """All three goals are reached, since the state is right in the end; the wrong call costs, its undoing does not."""
    found = score(CHAIN, call(fund("k2", 7)), call(pay("k2", 7)), call(FIND), call(pay("k1", 5)), DONE)
    assert found.turns == close_to(0, 0, 0, 1 / 6, 1 / 3) and found.parts["state"] == 1 and not found.success


def test_calls_of_a_step_are_run_in_order():
    _, seen = played(FOLLOW, call(LOOK, pay("k1", 5), LOOK))
    assert list(map(json.loads, seen[1:])) == [{"balance": 50}, {"ok": True}, {"balance": 45}]


def test_an_error_says_what_to_do_and_is_no_goal():
    """Two goals: the last balance, 0, and the words; the money put in is on the way to it."""
    episode, seen = played(RECOVER, *RECOVER.turns[0].steps)
    assert seen[1:] == ['{"error": "first other with 10"}', '{"ok": true}', '{"ok": true}']
    assert episode.score().turns == (0.0, 0.0, 0.5, 0.5) and episode.score().success
    assert episode.counts == {"tool_error": 1} and episode.done
    assert score(RECOVER, call(pay("k1", 60)), DONE).total == 0


def test_a_follow_up_comes_when_the_first_turn_is_answered():
    """Four goals: the lookup, the words that name the balance, the payment, the words behind it."""
    steps = (call(LOOK), Message("assistant", "It is 50."), call(pay("k1", 5)), DONE)
    episode, seen = played(FOLLOW, *steps)
    assert seen == ["The balance of k1?", '{"balance": 50}', "Now pay 5 from it.", '{"ok": true}']
    assert episode.done and episode.score().turns == (0.25, 0.25, 0.25, 0.25)
    assert score(FOLLOW, call(LOOK), DONE, call(pay("k1", 5)), DONE).turns == (0.25, 0.0, 0.25, 0.25)


@pytest.mark.parametrize(
    ("words", "right"),
    [
        ("50", True),
        ("The balance is 50.", True),
        ("k1 has 50", True),  # the user said k1
        ("50 or 51", False),
        ("It is 500, 5.50, 1-50", False),
        ("", False),
        ("k50", False),
    ],
)
def test_words_name_the_value_and_no_other(words, right):
    assert score(FOLLOW, call(LOOK), Message("assistant", words)).total == (0.5 if right else 0.25)


def test_a_thought_is_not_said():
    assert score(FOLLOW, call(LOOK), Message("assistant", "Here it is.", "It is 50.")).total == 0.25
    spoken_with_calls = Message("assistant", "It is 50.", calls=(LOOK,))
    assert score(FOLLOW, spoken_with_calls, DONE).total == 0.25


def test_a_rival_is_not_named():
    world = scenario(Turn("What is it?", (Message("assistant", "It is red."),), ("red",), ("blue",)))
    assert score(world, Message("assistant", "It is Red.")).success
    assert score(world, Message("assistant", "It is red or blue.")).total == 0


def test_a_refusal_is_in_words_and_changes_nothing():
    assert score(REFUSAL, Message("assistant", "I cannot.")).success
    assert score(REFUSAL, call(LOOK), Message("assistant", "I cannot.")).success  # looking does no harm
    wrong = score(REFUSAL, call(fund("k1", 1)), Message("assistant", "I cannot."))
    assert (wrong.total, wrong.parts["state"], wrong.parts["calls"], wrong.success) == (0.0, 0.0, 0.0, False)


@pytest.mark.parametrize(
    ("wrong", "count", "error"),
    [
        (ToolCall("steal", {}), "unknown_tool", "no such tool"),
        (ToolCall("find", {}), "wrong_arguments", "owner is missing"),
        (ToolCall("find", {"owner": "Ada", "x": 1}), "wrong_arguments", "unknown parameter"),
        (ToolCall("find", {"owner": 7}), "wrong_arguments", "owner: expected string"),
        (ToolCall("find", {"owner": "A" * 41}), "wrong_arguments", "owner: expected string"),
        (ToolCall("find", {"owner": ["Ada"]}), "wrong_arguments", "owner: expected string"),
        (pay("k1", "5"), "wrong_arguments", "amount: expected integer"),
        (pay("k1", True), "wrong_arguments", "amount: expected integer"),
        (pay("k1", -5), "wrong_arguments", "amount: expected integer"),
        (pay("k1", 10**5000), "wrong_arguments", "amount: expected integer"),
        (ToolCall("find", {"owner": "Eve"}), "tool_error", "no such owner"),
        (pay("k9", 5), "tool_error", "no such key"),
    ],
)
def test_a_wrong_call_is_answered_and_counted(wrong, count, error):
    episode, seen = played(CHAIN, call(wrong))
    assert json.loads(seen[-1]) == {"error": error} and episode.counts == {count: 1} and not episode.done
    assert episode.score().total == 0


def test_calls_that_cannot_be_read_are_answered_once():
    episode = GeneratedEpisode(CHAIN)
    episode.observe()
    for text in (b"<tool_call>\n{oops\n</tool_call>", b"<tool_call>\n[]\n</tool_call>\n<tool_call>\n1\n</tool_call>"):
        episode.act(Hermes().parse(text))
        assert [json.loads(message.text) for message in episode.observe()] == [{"error": "cannot read the calls"}]
    assert episode.counts == {"malformed": 2} and not episode.done and episode.score().total == 0


def test_a_result_has_the_name_and_the_id_of_its_call():
    episode = GeneratedEpisode(CHAIN)
    episode.observe()
    episode.act(parsed(call(ToolCall("find", {"owner": "Ada"}, "c1"))))
    assert episode.observe() == (Message("observation", '{"key": "k1"}', name="find", call_id="c1"),)


def test_answers_after_the_end_do_nothing():
    episode, seen = played(CHAIN, DONE, call(FIND), DONE)
    assert episode.done and seen == ["Pay 5 from Ada."] and episode.score().turns == (0.0, 0.0, 0.0)


def of_domain(name: str, *records: dict[str, Any], choices: Sequence[str] = ()) -> tuple[Any, Any]:
    """Runs calls in a world of a domain, whose records are k0, k1, …; and that world's store."""
    labels = {"id": "key", "name": "name", "state": "state", "act": "value", "other": "more"}
    kind = Kind(DOMAINS[name], "thing", labels, tuple(choices), {"act": "do", "other": "help"})
    labels |= {"act": "amount"} if kind.domain.act.takes == "amount" else {}
    store = {f"k{index}": {"kind": "thing", "name": f"N{index}", **record} for index, record in enumerate(records)}
    world = Scenario({role: tool(role, kind) for role in ("look", "act", "other")}, store, (), ERRORS, "")

    def run(role: str, *values: Any) -> str:
        try:
            world.run(store, ToolCall(role, dict(zip(kind.keys(role), values, strict=True))))
        except CallError as error:
            return error.text
        return "ok"

    return run, store


def test_stock_is_taken_where_there_is_enough():
    run, store = of_domain("stock", {"state": 3}, {"state": 4}, {"state": 9})
    assert [run("act", "k0", 5), run("act", "k0", 3), run("act", "k2", 10)] == ["take k2", "ok", "no"]
    assert store["k0"]["state"] == 0


def test_an_order_is_cancelled_or_returned():
    run, store = of_domain("orders", {"state": "open"}, {"state": "sent"}, choices=("open", "sent", "off", "back"))
    assert [run("act", "k1"), run("other", "k0"), run("act", "k0"), run("other", "k1")] == [
        "use other",
        "no",
        "ok",
        "ok",
    ]
    assert (store["k0"]["state"], store["k1"]["state"]) == ("off", "back")


def test_a_device_is_set_when_it_is_on():
    run, store = of_domain("devices", {"state": "off"}, choices=("on", "off", "a", "b"))
    assert [run("act", "k0", 7), run("other", "k0"), run("act", "k0", 7)] == ["first other", "ok", "ok"]
    assert store["k0"]["level"] == 7


def test_a_slot_is_booked_once_and_a_loan_is_queued_for():
    run, store = of_domain("slots", {"state": "Ada"}, {"state": FREE})
    assert [run("act", "k0", "Bob"), run("act", "k1", "Bob"), run("act", "k0", "Bob")] == ["take k1", "ok", "no"]
    run, store = of_domain("loans", {"state": "Ada"}, {"state": FREE})
    assert [run("act", "k0", "Bob"), run("other", "k0", "Bob"), run("other", "k1", "Bob")] == ["use other", "ok", "no"]
    assert store["k0"] == {"kind": "thing", "name": "N0", "state": "Ada", "next": "Bob"}


def test_a_ticket_is_closed_by_somebody():
    run, store = of_domain("tickets", {"state": FREE, "duty": "Ada"})
    assert [run("act", "k0"), run("other", "k0", "Ada"), run("act", "k0")] == ["first other with Ada", "ok", "ok"]
    assert store["k0"]["closed"] is True


def test_a_file_moves_to_a_place_that_there_is():
    run, store = of_domain("files", {"state": "attic"})
    assert [run("act", "k0", "hut"), run("other", "hut"), run("act", "k0", "hut")] == [
        "first other with hut",
        "ok",
        "ok",
    ]
    assert store["k0"]["state"] == "hut" and run("other", "hut") == "no" and run("look", "hut") == "no such key"


def test_a_locker_opens_with_its_code():
    run, _ = of_domain("lockers", {"state": "ab1"})
    assert [run("act", "k0", "ab2"), run("act", "k0", "ab1")] == ["see look for the state", "ok"]
    assert [run("other", "k0", "ab3"), run("act", "k0", "ab1")] == ["ok", "see look for the state"]


def test_partners_are_two_who_are_free():
    run, store = of_domain("partners", {"state": "k1"}, {"state": "k0"}, {"state": FREE})
    taken, of_taken, itself, nobody = (
        run("act", *ids) for ids in (("k0", "k2"), ("k2", "k0"), ("k2", "k2"), ("k2", "k7"))
    )
    assert {taken, of_taken, itself, nobody} == {"first other"}
    assert [run("other", "k0"), run("other", "k1"), run("act", "k0", "k2")] == ["ok", "no", "ok"]
    assert [record["state"] for record in store.values()] == ["k2", FREE, "k0"]


@pytest.mark.parametrize("split", SPLITS)
def test_right_plays_of_every_kind_earn_all(split):
    for kind in KINDS:
        environment = GeneratedEnvironment(200, 200, kinds={kind: 1.0})
        for task in environment.tasks(split):
            world = environment.scenario(task)
            episode = GeneratedEpisode(world)
            messages = list(play(world, episode, EXPERT, random.Random(0)))
            found = episode.score()
            assert (found.total, found.success, sum(found.turns)) == (1.0, True, 1.0), task
            assert set(found.parts.values()) == {1.0} and episode.done and task.tags == (kind,)
            assert (episode.counts["tool_error"] == 1) == (kind == "recover") and len(episode.counts) < 2
            assert 2 <= len(episode.tools) <= 5 and messages[-1].role == "assistant"


def test_every_domain_has_tasks_of_every_kind_but_branches():
    assert len(DOMAINS) == 10 and len(domains_of("branch")) == 8
    for kind in KINDS:
        for domain in domains_of(kind):
            world = Author(random.Random(domain), "train", domain).write(kind)
            episode = GeneratedEpisode(world)
            list(play(world, episode, EXPERT, random.Random(0)))
            assert episode.score().success, (kind, domain)


def test_what_the_user_wants_said_was_not_given():
    """A value that the words must name is in no message of the user's before, but in a result."""
    environment = GeneratedEnvironment(300)
    for task in environment.tasks("train"):
        for turn in environment.scenario(task).turns:
            if task.tags != ("ask",):
                assert not any(re.search(rf"\b{value}\b", turn.user) for value in turn.wanted), task


def test_the_other_way_of_a_branch_is_on_offer():
    environment = GeneratedEnvironment(100, kinds={"branch": 1.0})
    for task in environment.tasks("train"):
        world = environment.scenario(task)
        assert {"act", "other"} <= {tool.role for tool in world.tools.values()}
        episode = GeneratedEpisode(world)
        for step in (*world.turns[0].slip, Message("assistant", world.done)):
            episode.act(parsed(step))
        assert not episode.score().success and episode.score().total <= 0.5


@pytest.mark.parametrize(
    ("habit", "kinds"),
    [
        ("stop_after_first", ["chain", "branch", "several"]),
        ("invent_id", ["chain"]),
        ("give_up", ["recover"]),
        ("call_anyway", ["refusal", "branch"]),
        ("invent_value", ["ask"]),
    ],
)
def test_careless_plays_earn_less(habit, kinds):
    """Never a success where the habit applies, and less than the right play, which earns 1, by a good deal."""
    habits = Habits(**{name: float(name == habit) for name in Habits.__slots__})
    environment = GeneratedEnvironment(100, kinds=dict.fromkeys(kinds, 1.0))
    totals = []
    for task in environment.tasks("train"):
        world = environment.scenario(task)
        episode = GeneratedEpisode(world)
        list(play(world, episode, habits, random.Random(0)))
        assert episode.done and not episode.score().success, task
        totals.append(episode.score().total)
    assert sum(totals) / len(totals) < 0.5


def test_a_repeated_call_costs_where_it_changes_something():
    habits = Habits(0, 1, 0, 0, 0, 0)
    environment = GeneratedEnvironment(100)
    totals = []
    for task in environment.tasks("train"):
        world = environment.scenario(task)
        episode = GeneratedEpisode(world)
        list(play(world, episode, habits, random.Random(0)))
        totals.append(episode.score().total)
    assert 0.5 < sum(totals) / len(totals) < 1


def test_the_same_seed_gives_the_same_plays():
    first, again = GeneratedEnvironment(30, 30, seed=3), GeneratedEnvironment(30, 30, seed=3)
    for split in SPLITS:
        assert first.tasks(split) == again.tasks(split)
        for task in first.tasks(split):
            assert gold(first, task) == gold(again, task, seed=1)
            assert first.start(task, 0).tools == again.start(task, 1).tools
    other = GeneratedEnvironment(30, 30, seed=4)
    assert [gold(first, task) for task in first.tasks("val")] != [gold(other, task) for task in other.tasks("val")]


def test_a_play_leaves_the_world_of_the_next_as_it_was():
    environment = GeneratedEnvironment(20)
    for task in environment.tasks("train"):
        world = environment.scenario(task)
        plays = [tuple(play(world, GeneratedEpisode(world), EXPERT, random.Random(0))) for _ in range(2)]
        assert plays[0] == plays[1] == gold(environment, task)


def test_training_and_unseen_share_no_word():
    found = {}
    glue = set(re.findall(r"[a-z]+", json.dumps(PHRASINGS).lower())) | {word.lower() for word in GLUE}
    for split in SPLITS:
        environment, texts = GeneratedEnvironment(300, 200), []
        for task in environment.tasks(split):
            world = environment.scenario(task)
            texts += [f"{name} {' '.join(tool.spec.parameters)}" for name, tool in world.tools.items()]
            texts += [turn.user for turn in world.turns] + [json.dumps(list(world.records.values()))]
        words = set(re.findall(r"[a-z]{3,}", " ".join(texts).lower().replace('"', " ")))
        found[split] = words - glue - {"string", "integer", "kind", "duty", "true"}
    assert len(found["train"]) > 1000
    assert not (found["train"] | found["val"]) & found["val_unseen"]
    assert all(map(is_held_out_word, found["val_unseen"]))


@pytest.mark.parametrize("key", [*PHRASINGS["train"]])
def test_unseen_phrasings_are_not_those_of_training(key):
    assert not set(PHRASINGS["train"][key]) & set(PHRASINGS["unseen"][key])


def test_no_world_of_training_is_validated_on():
    environment = GeneratedEnvironment(600, 100)
    requests = {
        split: {environment.scenario(task).turns[0].user for task in environment.tasks(split)} for split in SPLITS
    }
    assert not requests["train"] & requests["val"]


def hostile(rng: random.Random, world: Scenario) -> ParsedResponse:
    """Right steps, broken steps, other tools' arguments, things that are no arguments, calls of everything."""
    values = [
        None,
        True,
        -1,
        0,
        3,
        10**30,
        1.5,
        float("nan"),
        "",
        "k1",
        "\ud800",
        "x" * 10**4,
        [],
        {},
        [[]],
        {"a": None},
    ]
    values += [id for id in world.records] + [record.get("state", "") for record in world.records.values()]
    right = [step for turn in world.turns for step in (*turn.steps, *turn.slip)]
    calls = [call for step in right for call in step.calls]
    for _ in range(rng.randrange(4)):
        name = rng.choice([*world.tools, "", "no", "\ud800"])
        keys = [*world.tools[name].spec.parameters] if name in world.tools else ["a"]
        calls.append(
            ToolCall(name, {key: rng.choice(values) for key in rng.choice((keys, keys, keys[1:], [*keys, "x"]))})
        )
    style = rng.random()
    if style < 0.3:
        return parsed(rng.choice(right))
    if style < 0.8 and calls:
        return parsed(call(*rng.choices(calls, k=rng.choice((1, 1, 2, 5)))))
    if style < 0.9:
        return Hermes().parse(bytes(rng.randrange(256) for _ in range(rng.randrange(40))))
    return ParsedResponse(("tool_call",), (False,), None, rng.choice((None, ())), None, (), 0)


def test_no_answer_breaks_an_episode():
    environment, rng = GeneratedEnvironment(250, seed=9), random.Random(1)
    totals = set()
    for task in environment.tasks("train"):
        world, episode = environment.scenario(task), environment.start(task, 0)
        for count in range(1, 10):
            episode.observe()
            episode.act(hostile(rng, world))
            found = episode.score()
            assert 0 <= found.total <= 1 and sum(found.turns) == found.total and len(found.turns) == count
            assert all(0 <= part <= 1 for part in found.parts.values())
            assert found.success == (found.total == 1) and (not found.success or set(found.parts.values()) == {1.0})
        episode.close()
        totals.add(found.total)
    assert len(totals) > 5


def test_plays_are_read_back_as_the_format_writes_them():
    environment, format = GeneratedEnvironment(60), Hermes()
    for task in environment.tasks("train"):
        episode = environment.start(task, 0)
        for message in gold(environment, task):
            if message.role == "assistant":
                episode.act(format.parse(format.step_text(message).encode(), episode.tools))
        assert episode.score().success, task


@pytest.mark.parametrize("habits", [None, Habits()], ids=["expert", "habits"])
def test_the_corpus_has_a_step_an_example(habits):
    source = GeneratedSource(200, 40, seed=2, habits=habits)
    assert source.splits() == SPLITS and [len(source.load(split)) for split in SPLITS] == [200, 40, 40]
    for example in source.load("train"):
        check_on_offer(example.target.calls, example.tools, example.place, "target")
        assert example.tags[0] in KINDS and bool(example.target.calls) != bool(example.target.text)
    assert source.load("val") == GeneratedSource(200, 40, seed=2).load("val")
    assert (source.load("train") == GeneratedSource(200, 40, seed=2).load("train")) == (habits is None)


def test_the_corpus_plays_the_environments_tasks():
    environment = GeneratedEnvironment(5, seed=2)
    dialogues = islice(GeneratedSource(seed=2).dialogues("train"), 5)
    for task, (dialogue, kind) in zip(environment.tasks("train"), dialogues, strict=True):
        assert (dialogue.messages, dialogue.id, kind) == (gold(environment, task), task.id, task.tags[0])
        assert len(split_turns(dialogue)) == sum(message.role == "assistant" for message in dialogue.messages)


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="expected some of"):
        GeneratedEnvironment(kinds={"chains": 1.0})
    with pytest.raises(ConfigError, match="num_val"):
        GeneratedSource(num_val=0)
    environment: Environment = GeneratedEnvironment(1, 1)
    assert environment.splits() == SPLITS and environment.name == "generated"
    with pytest.raises(ValueError, match="test"):
        environment.tasks("test")
    with pytest.raises(ValueError, match="test"):
        GeneratedSource().load("test")


@pytest.mark.parametrize("split", ["train", "val_unseen"])
def test_plays_are_short_enough_for_a_tiny_policy(split):
    """First prompts, and whole plays with all thoughts, in tokens of the tiny native policy."""
    renderer = PromptRenderer(AutoTokenizer.from_pretrained(ROOT / "src/models/tiny_native"), layout="native")
    firsts, totals = [], []
    for dialogue, _ in islice(GeneratedSource().dialogues(split), 40):
        *earlier, last = examples = split_turns(dialogue)
        bare = [replace(example, target=replace(example.target, thought="")) for example in earlier]
        thoughts = sum(map(len, renderer.render_targets(earlier))) - sum(map(len, renderer.render_targets(bare)))
        firsts.append(len(renderer.render(examples[0]).prompt_ids))
        totals.append(len(renderer.render(last).prompt_ids) + len(renderer.render_target(last)) + thoughts)
    assert 100 < median(firsts) < 200 and max(firsts) < 300
    assert 250 < median(totals) < 400 and max(totals) < 600


def test_no_call_can_be_left_out():
    """But the one that a rule refuses."""
    environment = GeneratedEnvironment(150)
    for task in environment.tasks("train"):
        world = environment.scenario(task)
        steps = [step for turn in world.turns for step in turn.steps]
        for left_out in calls_of(steps):
            episode = GeneratedEpisode(world)
            for step in steps:
                calls = tuple(one for one in step.calls if one is not left_out)
                if calls or step.text:
                    episode.act(parsed(replace(step, calls=calls)))
            assert episode.score().success == (task.tags == ("recover",) and not episode.counts), task


def test_the_data_pipeline_takes_the_corpus():
    """Every target reads back and earns full marks; no training prompt is validated on."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "src/models/tiny_native")
    renderer = PromptRenderer(tokenizer, layout="native")
    source = GeneratedSource(120, 40, habits=Habits())
    module = ToolDialogueDataModule(source, prompts_per_step=8, max_prompt_tokens=600, renderer=renderer)
    module.check = TargetCheck(
        renderer, ToolCallReward(), TokenBytes.from_tokenizer(tokenizer), {tokenizer.eos_token_id}
    )
    module.setup()
    assert (len(module.prompts("train")), module.twins) == (120, 0)
    assert set(module.dropped.values()) == set(module.bad.values()) == {0} and module.val_names == SPLITS[1:]
    assert len(next(iter(module.train_dataloader()))) == 8


def test_several_calls_are_made_in_any_steps_and_order():
    environment = GeneratedEnvironment(100, kinds={"several": 1.0})
    for task in environment.tasks("train"):
        world = environment.scenario(task)
        step, words = world.turns[0].steps
        episode, _ = played(world, *(call(one) for one in reversed(step.calls)), words)
        assert episode.score().success and len(episode.score().turns) == len(step.calls) + 1
