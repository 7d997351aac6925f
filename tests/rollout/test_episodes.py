"""Episodes with the chat templates of real models: what the engine sees is what the template writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.data.rendering import PromptRenderer
from src.data.templates.native import openai_messages, openai_tool
from src.environments.protocol import EpisodeScore, Task
from src.environments.tasks import TaskSource
from src.protocol.dialogue import Message, ToolCall, ToolSpec
from src.protocol.token_bytes import TokenBytes
from src.protocol.types import ParsedResponse
from src.rollout.engine import Completion, SamplingParams
from src.rollout.episodes import EpisodeLimits, Player
from tests.data.templates.test_native import FORMATS, template, tokenizer  # noqa: F401  # a fixture
from tests.protocol.conftest import smollm2  # noqa: F401  # a fixture

TOOLS = (ToolSpec.of("find_city", "Finds a city.", {"name": {"type": "string"}}),)
OPENING = (Message("user", "How many live in Oslo?"),)


@dataclass
class Script:
    """An episode in which everything is given: what is observed after each answer; then it is done."""

    replies: Sequence[tuple[Message, ...]]
    tools: tuple[ToolSpec, ...] = TOOLS
    opening: tuple[Message, ...] = OPENING
    counts: dict[str, int] = field(default_factory=dict)
    answers: list[ParsedResponse] = field(default_factory=list)
    closed: bool = False

    @property
    def done(self) -> bool:
        return len(self.answers) > len(self.replies)

    def observe(self) -> tuple[Message, ...]:
        return self.replies[len(self.answers) - 1] if self.answers else self.opening

    def act(self, answer: ParsedResponse) -> None:
        self.answers.append(answer)

    def score(self) -> EpisodeScore:
        turns = tuple(float(index + 1) for index in range(len(self.answers)))
        return EpisodeScore(sum(turns), {"state": 0.5}, turns, self.done)

    def close(self) -> None:
        self.closed = True


@dataclass
class Scripted:
    """An environment of one task a script."""

    scripts: Mapping[str, Sequence[tuple[Message, ...]]]
    name: str = "scripted"
    parts: tuple[str, ...] = ("state",)
    started: list[Script] = field(default_factory=list)
    closed: bool = False

    def splits(self) -> tuple[str, ...]:
        return ("train",)

    def tasks(self, split: str) -> list[Task]:
        return [Task(name, {"row": name}, ("kind",)) for name in self.scripts]

    def start(self, task: Task, seed: int) -> Script:
        self.started.append(Script(self.scripts[task.id]))
        return self.started[-1]

    def close(self) -> None:
        self.closed = True


class Forced:
    """An engine that says what it is told to, and remembers what it was asked."""

    copies_weights, ranks_per_engine, weights_version = False, 1, 0

    def __init__(self, answers: Sequence[Sequence[Tensor]], finish: str = "stop") -> None:
        """Answers of each call, in the order of its prompts and of their completions."""
        self.answers, self.finish = list(answers), finish
        self.asked: list[list[Tensor]] = []
        self.seeds: list[list[int]] = []

    def generate(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        self.asked.append(list(prompts))
        self.seeds.append(list(seeds))
        ids = iter(self.answers[len(self.asked) - 1])
        return [
            [Completion(one, -torch.ones(len(one)), self.finish, 0) for one, _ in zip(ids, range(params.n))]  # type: ignore[arg-type]  # noqa: B905
            for _ in prompts
        ]

    def update_weights(self, named_tensors: object, version: int) -> None: ...

    def release_memory(self) -> None: ...

    def close(self) -> None: ...


def player(
    environment: Scripted, engine: Forced, renderer: PromptRenderer, limits: EpisodeLimits | None = None
) -> Player:
    table = TokenBytes.from_tokenizer(renderer.tokenizer)
    stops = tuple(renderer.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|eot_id|>", "<|call|>", "<|return|>"]))
    return Player(engine, environment, renderer, table, stops, limits or EpisodeLimits())


def steps(thought: str) -> list[Message]:
    """A call, its result, an answer, a further question, a call, its result, an answer."""
    return [
        *OPENING,
        Message("assistant", "", thought, (ToolCall("find_city", {"name": "Oslo"}),)),
        Message("observation", '{"people": 717710}', name="find_city"),
        Message("assistant", "717,710 people.", thought),
        Message("user", "And in Rome?"),
        Message("assistant", "", thought, (ToolCall("find_city", {"name": "Rome"}),)),
        Message("observation", '{"people": 2746984}', name="find_city"),
        Message("assistant", "2,746,984 people.", thought),
    ]


REWRITES = {
    ("qwen2_5", ""): 0,
    ("qwen3", ""): 3,
    ("qwen3", "Look."): 1,
    ("qwen3_instruct_2507", ""): 0,
    ("qwen3_vl", ""): 0,
    ("qwen3_5_think", "Look."): 1,
    ("qwen3_5_nothink", ""): 1,
    ("qwen3_6", "Look."): 1,
    ("qwen3_8", "Look."): 0,
    ("nemotron_3_nano", "Look."): 1,
    ("llama3_1", ""): 0,
    ("llama3_2", ""): 0,
    ("gptoss", "Look."): 1,
    ("gptoss", ""): 1,
}
"""Template and thought -> how often it writes earlier messages otherwise in `steps`.

Most leave thoughts out once the user speaks again. Qwen3 writes an empty thought only for the last message, Qwen3.5 one
before the answer of a finished turn, and gpt-oss ends an answer that is history with another token.
"""


@pytest.mark.parametrize(("name", "thought"), REWRITES)
def test_the_engine_sees_what_the_template_writes(
    name: str,
    thought: str,
    tokenizer: PreTrainedTokenizerBase,  # noqa: F811
) -> None:
    tokenizer.chat_template = template(name)
    renderer = PromptRenderer(tokenizer, layout="native", date="2026-11-30")
    said = steps(thought)
    environment = Scripted({"a": [(said[2],), (said[4],), (said[6],)]})
    (example,) = TaskSource(environment).load("train")
    turns = [index for index, message in enumerate(said) if message.role == "assistant"]
    targets = [
        renderer.render_target(replace(example, history=tuple(said[:index]), target=said[index])) for index in turns
    ]
    engine = Forced([[target] for target in targets])
    prompt = renderer.render(example)
    ((episode,),) = player(environment, engine, renderer).play([prompt], SamplingParams(), lambda key: 0)

    assert [turn.decoded.parsed.calls or () for turn in episode.turns] == [said[index].calls for index in turns]
    assert episode.ending == "done"
    tools = [openai_tool(tool) for tool in TOOLS]
    for index, (asked,) in zip(turns, engine.asked, strict=True):
        written = tokenizer.apply_chat_template(
            openai_messages(said[:index]),
            tools=tools,
            tokenize=False,
            add_generation_prompt=True,
            strftime_now=__import__("datetime").datetime(2026, 11, 30).strftime,
        )
        assert tokenizer.decode(asked) == written
    assert episode.history.rewrites == REWRITES[name, thought]


def test_every_format_is_played() -> None:
    assert {name for name, _ in REWRITES} == set(FORMATS)
