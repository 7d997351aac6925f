"""Masked names stay consistent within an example."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from src.data.sources.base import dialogue_key
from src.data.sources.hammer import HammerSource, mask_example, random_identifier
from src.data.sources.xlam import XlamSource
from src.protocol.dialogue import ChatPrompt, DataError, Message, ToolCall, ToolSpec, TurnExample
from tests.faults.records import xlam_row

TIDES = ToolSpec.of("get_tides", "Tides; see find_port for ids.", {"id": {"type": "int"}, "day": {"type": "str"}})
PORTS = ToolSpec.of("find_port", "Finds a port.", {"id": {"type": "str"}})
SEARCH = ToolSpec.of("search", "Searches.", {"q": {"type": "str"}})
EXAMPLE = TurnExample(
    tools=(TIDES, PORTS, SEARCH),
    history=(
        Message("user", "Use find_port to search for Hull, then get_tides."),
        Message("assistant", thought="find_port first.", calls=(ToolCall("find_port", {"id": "Hull"}),)),
        Message("observation", '[{"name": "find_port", "results": {"id": 4, "hint": "get_tides(4)", "name": "Hull"}}]'),
        Message("assistant", "I will search.", calls=(ToolCall("search", {"q": "find_port"}),)),
        Message("observation", "{'name': 'search', 'results': 'a search for get_tides_old'}"),
    ),
    target=Message("assistant", thought="Now get_tides.", calls=(ToolCall("get_tides", {"id": 4, "day": "today"}),)),
    source="hand",
    id="0/1",
    tags=("single_call",),
)


class Fixed:
    """A source of given examples."""

    def __init__(self, examples: Sequence[TurnExample], val: Sequence[TurnExample] = ()) -> None:
        self.name = "hand"
        self.examples = {"train": list(examples), "val": list(val)}

    def splits(self) -> tuple[str, ...]:
        return ("train", "val")

    def load(self, split: str) -> list[TurnExample]:
        return self.examples[split]


def test_names_are_replaced_consistently_everywhere() -> None:
    masked = mask_example(EXAMPLE, random.Random(0))
    tides, ports, search = masked.tools
    first, seen, second, seen_too = masked.history[1:]

    # calls of the history and of the target use the names and the parameters of the tools
    assert first.calls == (ToolCall(ports.name, {next(iter(ports.parameters)): "Hull"}),)
    assert second.calls == (ToolCall(search.name, {next(iter(search.parameters)): "find_port"}),)
    assert masked.target.calls == (ToolCall(tides.name, dict(zip(tides.parameters, [4, "today"], strict=True))),)
    # observations that name a tool; values that are no tool's name stay
    assert json.loads(seen.text) == [
        {"name": ports.name, "results": {"id": 4, "hint": f"{tides.name}(4)", "name": "Hull"}}
    ]
    assert seen_too.text == f"{{'name': '{search.name}', 'results': 'a search for get_tides_old'}}"
    # descriptions and thoughts; the ordinary word "search" stays
    assert tides.description == f"Tides; see {ports.name} for ids."
    assert (first.thought, masked.target.thought) == (f"{ports.name} first.", f"Now {tides.name}.")
    assert second.text == "I will search."
    # what describes parameters stays, in order, and so does the user's text
    assert [list(tool.parameters.values()) for tool in masked.tools] == [
        list(tool.parameters.values()) for tool in EXAMPLE.tools
    ]
    assert masked.history[0] == EXAMPLE.history[0]


def test_masks_are_unique_and_say_nothing() -> None:
    for seed in range(200):
        tools = mask_example(EXAMPLE, random.Random(seed)).tools
        names = [tool.name for tool in tools] + [name for tool in tools for name in tool.parameters]
        assert len(set(names)) == len(names) == 7  # `id` of two tools became two names
        assert all(re.fullmatch(r"\w{5,15}", name, re.ASCII) for name in names)
        assert not set(names) & {"get_tides", "find_port", "search", "id", "day", "q"}


def test_a_mask_is_drawn_again_when_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(["search", "aaaaa", "aaaaa", "bbbbb"])
    monkeypatch.setattr("src.data.sources.hammer.random_identifier", lambda rng: next(drawn))
    example = replace(EXAMPLE, tools=(SEARCH,), history=EXAMPLE.history[:1], target=Message("assistant", "x"))
    (tool,) = mask_example(example, random.Random(0)).tools

    assert {tool.name, *tool.parameters} == {"aaaaa", "bbbbb"}


def test_identifiers_have_the_published_shape() -> None:
    rng = random.Random(0)
    lengths = {len(random_identifier(rng)) for _ in range(1000)}

    assert lengths == set(range(5, 16))


def test_the_seed_and_the_id_fix_the_mask() -> None:
    def names(seed: int, id: str) -> list[str]:
        (example,) = HammerSource(Fixed([replace(EXAMPLE, id=id)]), seed=seed).load("train")
        return [tool.name for tool in example.tools]

    assert names(0, "a") == names(0, "a")
    assert names(0, "a") != names(1, "a")
    assert names(0, "a") != names(0, "b")


def test_the_mask_of_an_example_does_not_depend_on_the_others() -> None:
    two = [replace(EXAMPLE, id="a"), replace(EXAMPLE, id="b")]

    assert HammerSource(Fixed(two)).load("train")[1] == HammerSource(Fixed(two[1:])).load("train")[0]


def test_a_share_of_the_examples_is_masked() -> None:
    examples = [replace(EXAMPLE, id=str(n)) for n in range(1000)]
    source = HammerSource(Fixed(examples, val=examples[:1]), mask_share=0.3)
    loaded = source.load("train")
    masked = [example for example in loaded if "masked" in example.tags]

    # binomial: 300 expected, standard deviation sqrt(1000 x 0.3 x 0.7) = 14.5
    assert 300 - 4 * 14.5 < len(masked) < 300 + 4 * 14.5
    assert all((example.tools != EXAMPLE.tools) == ("masked" in example.tags) for example in loaded)
    assert {example.source for example in loaded} == {"hammer"}
    assert source.splits() == ("train", "val") and len(source.load("val")) == 1


def test_a_prompt_published_as_text_is_refused() -> None:
    verbatim = replace(EXAMPLE, tools=(), history=(), prompt=ChatPrompt("system", "user"), source="rlla", id="x-3")
    with pytest.raises(DataError, match=r"rlla\[x-3\]: field 'prompt': .*Wrap a corpus of dialogues \(toolace, xlam\)"):
        HammerSource(Fixed([verbatim])).load("train")


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask_share: expected a share in \[0, 1\], found 1.5"):
        HammerSource(Fixed([]), mask_share=1.5)


def test_a_masked_copy_is_of_the_same_dialogue(tmp_path: Path) -> None:
    """By which a training prompt is told to be validated on, whatever names either has."""
    rows = random.Random(0)
    (tmp_path / "rows.json").write_text(json.dumps([xlam_row(rows) for _ in range(5)]))
    source = XlamSource(path=str(tmp_path / "rows.json"))
    plain, masked = source.load("train"), HammerSource(source).load("train")

    assert [one.tools for one in plain] != [one.tools for one in masked]
    assert [dialogue_key(one) for one in plain] == [dialogue_key(one) for one in masked]
    assert len({dialogue_key(one) for one in plain}) == 5
