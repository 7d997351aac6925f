"""Episodes with the chat templates of real models: what the engine sees is what the template writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import cycle, islice
from threading import Barrier

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.data.rendering import PromptRenderer
from src.data.templates.native import openai_messages, openai_tool
from src.environments.protocol import EnvironmentFaultError, EpisodeScore, Opening, Task
from src.environments.tasks import TaskSource
from src.protocol.dialogue import Message, ToolCall, ToolSpec
from src.protocol.token_bytes import TokenBytes
from src.protocol.types import ParsedResponse
from src.rollout.collect import StaleRolloutError
from src.rollout.engine import Completion, SamplingParams
from src.rollout.episodes import EpisodeCollector, EpisodeLimits, Player
from tests.data.templates.test_native import FORMATS, template, tokenizer  # noqa: F401  # a fixture
from tests.protocol.conftest import smollm2  # noqa: F401  # a fixture
from tests.rollout.forced import TEMPLATES, native_outcome

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
    concurrent: int = 1
    started: list[Script] = field(default_factory=list)
    closed: bool = False

    def splits(self) -> tuple[str, ...]:
        return ("train",)

    def tasks(self, split: str) -> list[Task]:
        return [Task(name, {"row": name}, ("kind",)) for name in self.scripts]

    def opening(self, task: Task) -> Opening:
        return Opening.of(self.start(task, 0))

    def start(self, task: Task, seed: int) -> Script:
        self.started.append(Script(self.scripts[task.id]))
        return self.started[-1]

    def close(self) -> None:
        self.closed = True


class Forced:
    """An engine that says what it is told to, and remembers what it was asked."""

    copies_weights, ranks_per_engine, weights_version, context = False, 1, 0, None

    def __init__(self, answers: Sequence[Sequence[Tensor]]) -> None:
        """Answers of each call, in the order of its prompts and of their completions."""
        self.answers = list(answers)
        self.asked: list[list[Tensor]] = []
        self.seeds: list[list[int]] = []

    def generate(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        self.asked.append(list(prompts))
        self.seeds.append(list(seeds))
        ids = cycle(self.answers[len(self.asked) - 1])
        return [[Completion(one, -torch.ones(len(one)), "stop", 0) for one in islice(ids, params.n)] for _ in prompts]

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
            strftime_now=datetime(2026, 11, 30).strftime,
        )
        assert tokenizer.decode(asked) == written
    assert episode.history.rewrites == REWRITES[name, thought]


@pytest.mark.parametrize(
    ("name", "thoughts"), [(name, some) for name, thinks in TEMPLATES.items() for some in {thinks, False}]
)
def test_the_trainer_scores_every_token_as_the_engine_did(
    name: str,
    thoughts: bool,
    tokenizer: PreTrainedTokenizerBase,  # noqa: F811
) -> None:
    """Plays of generated worlds, forced through the native engine; `python -m tests.rollout.forced` has 200 of each."""
    tokenizer.chat_template = template(name)
    outcome = native_outcome(tokenizer, tasks=2, thoughts=thoughts)
    assert outcome.episodes == 16 and outcome.strays == 0
    assert outcome.gap < 3e-5 and outcome.called > 0.4


def test_every_format_is_played() -> None:
    assert {name for name, _ in REWRITES} == set(FORMATS)


@pytest.fixture
def renderer(tokenizer: PreTrainedTokenizerBase) -> PromptRenderer:  # noqa: F811
    tokenizer.chat_template = template("qwen2_5")
    return PromptRenderer(tokenizer, layout="native")


def ids_of(renderer: PromptRenderer, *texts: str) -> list[Tensor]:
    """The ids of answers, each with the token that ends it."""
    return [
        torch.tensor(renderer.tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]) for text in texts
    ]


RESULT = (Message("observation", "{}", name="find_city"),)


def test_episodes_are_played_in_lock_step(renderer: PromptRenderer) -> None:
    """Of two tasks, two episodes each: those of one end first; the others go on, each with a seed of its own."""
    environment = Scripted({"short": [], "long": [RESULT]})
    prompts = renderer.render_all(TaskSource(environment).load("train"))
    first, second = ids_of(renderer, "One.", "Two, too."), ids_of(renderer, "Three.", "Four.")
    engine = Forced([first, second])
    keys: list[str] = []
    played = player(environment, engine, renderer).play(
        prompts, SamplingParams(n=2), lambda key: keys.append(key) or len(keys)
    )
    assert keys == ["short", "long", "long/0/1", "long/1/1"]
    assert [len(asked) for asked in engine.asked] == [2, 2]
    assert [[len(episode.turns) for episode in group] for group in played] == [[1, 1], [2, 2]]
    assert all(script.closed for script in environment.started)
    text = renderer.tokenizer.decode(engine.asked[1][1])
    assert text.endswith(
        "<|im_start|>assistant\nTwo, too.<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n{}\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


@dataclass
class Together(Script):
    """A script whose calls wait until another episode's run too."""

    meeting: Barrier = field(default_factory=lambda: Barrier(1))

    def act(self, answer: ParsedResponse) -> None:
        self.meeting.wait(timeout=20)
        super().act(answer)


@dataclass
class Meeting(Scripted):
    """An environment whose episodes act two at a time, and of which the third does not start."""

    meeting: Barrier = field(default_factory=lambda: Barrier(2))
    allowed: int = 2

    def start(self, task: Task, seed: int) -> Script:
        if len(self.started) == self.allowed:
            raise EnvironmentFaultError("no more")
        self.started.append(Together(self.scripts[task.id], meeting=self.meeting))
        return self.started[-1]


def test_calls_of_a_step_run_at_once_where_the_environment_says_so(renderer: PromptRenderer) -> None:
    prompts = renderer.render_all(TaskSource(Scripted({"a": [RESULT]})).load("train"))
    environment = Meeting({"a": [RESULT]}, concurrent=2)
    engine = Forced([ids_of(renderer, "One.", "Two."), ids_of(renderer, "Three.", "Four.")])
    (played,) = player(environment, engine, renderer).play(prompts, SamplingParams(n=2), lambda key: 0)
    texts = [[turn.decoded.text for turn in episode.turns] for episode in played]
    assert texts == [["One.", "Three."], ["Two.", "Four."]]
    assert [episode.ending for episode in played] == ["done", "done"]
    assert all(script.closed for script in environment.started)


@pytest.mark.parametrize("concurrent", [1, 2])
def test_episodes_that_did_start_are_closed_where_another_does_not(concurrent: int, renderer: PromptRenderer) -> None:
    prompts = renderer.render_all(TaskSource(Scripted({"a": []})).load("train"))
    environment = Meeting({"a": []}, concurrent=concurrent)
    with pytest.raises(EnvironmentFaultError, match="no more"):
        player(environment, Forced([]), renderer).play(prompts, SamplingParams(n=3), lambda key: 0)
    assert [script.closed for script in environment.started] == [True, True]


def test_a_scored_episode_is_its_answers_end_to_end(renderer: PromptRenderer) -> None:
    environment = Scripted({"a": [RESULT]})
    (prompt,) = renderer.render_all(TaskSource(environment).load("train"))
    call, answer = ids_of(renderer, '<tool_call>\n{"name": "find_city", "arguments": {}}\n</tool_call>', "Found it.")
    engine = Forced([[call, call], [answer, answer]])
    collector = EpisodeCollector(player(environment, engine, renderer), TokenBytes.from_tokenizer(renderer.tokenizer))
    (group,) = collector.collect([prompt], SamplingParams(n=2), seed=1, rollout_step=0, progress=0.0)
    item = group.completions[0]
    assert item.completion.token_ids.tolist() == [*call.tolist(), *answer.tolist()]
    assert len(item.decoded.regions) == len(item.completion.logprobs) == len(call) + len(answer)
    metrics = item.metrics()
    assert {key: metrics[key] for key in ("reward/total", "reward/exact_match", "reward/format", "reward/state")} == {
        "reward/total": 3.0, "reward/exact_match": 1.0, "reward/format": 1.0, "reward/state": 0.5,
    }  # fmt: skip
    of_episode = {"turns": 2.0, "rewrites": 0.0, "ended_done": 1.0, "ended_cut": 0.0, "malformed": 0.0}
    assert {key: metrics[f"episode/{key}"] for key in of_episode} == of_episode
    experience = group.to_experience("dr_grpo", 0.0, "turn")
    assert experience.credit is not None and not experience.credit.any()  # both earned the same
    assert experience.tree is not None
    bridge = len(engine.asked[1][0]) - len(prompt.prompt_ids) - len(call)
    assert experience.tree.sampled.tolist() == 2 * [*len(call) * [True], *bridge * [False], *len(answer) * [True]]
    collector.close()
    assert environment.closed


def test_turn_credit_reaches_the_tokens_of_its_turn(renderer: PromptRenderer) -> None:
    """Rewards 1 and 2 of the turns; the second episode is cut in its second turn, which its environment never sees."""
    environment = Scripted({"a": [RESULT]})
    (prompt,) = renderer.render_all(TaskSource(environment).load("train"))
    one, two = ids_of(renderer, "One.", "Two.")

    class Cut(Forced):
        def generate(
            self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
        ) -> list[list[Completion]]:
            found = super().generate(prompts, params, seeds)
            if len(self.asked) == 2:
                found[1] = [Completion(two[:2], -torch.ones(2), "length", 0)]
            return found

    played = player(environment, Cut([[one, one], [two, two]]), renderer)
    collector = EpisodeCollector(played, TokenBytes.from_tokenizer(renderer.tokenizer))
    (group,) = collector.collect([prompt], SamplingParams(n=2), seed=1, rollout_step=0, progress=0.0)
    assert [item.reward.total for item in group.completions] == [3.0, 1.0]
    assert group.completions[1].episode is not None and group.completions[1].episode.ending == "cut"
    credit = group.to_experience("dr_grpo", 0.0, "turn").credit
    # To go: [3, 2] and [1, 0]; means 2 and 1.
    assert credit is not None
    assert credit.tolist() == [*len(one) * [1.0], *len(two) * [1.0], *len(one) * [-1.0], *2 * [-1.0]]


@pytest.mark.parametrize(
    ("limits", "ending"),
    [
        (EpisodeLimits(max_turns=1), "turns"),
        (EpisodeLimits(max_tokens=300), "tokens"),
        (EpisodeLimits(max_seconds=1e-9), "time"),
    ],
)
def test_limits_end_an_episode(limits: EpisodeLimits, ending: str, renderer: PromptRenderer) -> None:
    environment = Scripted({"a": [RESULT]})
    (prompt,) = renderer.render_all(TaskSource(environment).load("train"))
    engine = Forced([ids_of(renderer, "One.")])
    ((episode,),) = player(environment, engine, renderer, limits).play([prompt], SamplingParams(), lambda key: 0)
    assert (episode.ending, len(episode.turns), episode.score.total) == (ending, 1, 1.0)
    assert environment.started[-1].closed


def test_a_call_that_cannot_be_read_stays_in_rewritten_prompts(tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: F811
    tokenizer.chat_template = template("qwen3")
    renderer = PromptRenderer(tokenizer, layout="native")
    environment = Scripted({"a": [RESULT]})
    (prompt,) = renderer.render_all(TaskSource(environment).load("train"))
    broken = "<tool_call>\n{oops\n</tool_call>"
    engine = Forced([ids_of(renderer, broken), ids_of(renderer, "Done.")])
    player(environment, engine, renderer).play([prompt], SamplingParams(), lambda key: 0)
    assert broken in tokenizer.decode(engine.asked[1][0])


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("gptoss", "<|channel|>commentary to=functions.find_city<|message|>{oops<|call|>"),
        ("llama3_2", '{"name": "find_city", "parameters": {}}; {"name": "find_city", "parameters": {}}<|eot_id|>'),
    ],
)
def test_what_a_template_refuses_is_shown_as_it_was_written(
    name: str,
    answer: str,
    tokenizer: PreTrainedTokenizerBase,  # noqa: F811
) -> None:
    tokenizer.chat_template = template(name)
    renderer = PromptRenderer(tokenizer, layout="native", date="2026-11-30")
    environment = Scripted({"a": [RESULT]})
    (prompt,) = renderer.render_all(TaskSource(environment).load("train"))
    first = torch.tensor(tokenizer(answer, add_special_tokens=False)["input_ids"])
    engine = Forced([[first], ids_of(renderer, "Done.")])
    ((episode,),) = player(environment, engine, renderer).play([prompt], SamplingParams(), lambda key: 0)
    assert episode.ending == "done" and len(episode.turns) == 2
    text = tokenizer.decode(engine.asked[1][0])
    assert answer.partition("<|call|>")[0].partition("<|eot_id|>")[0] in text and "{}" in text


def test_refuses_a_task_that_starts_in_another_way(renderer: PromptRenderer) -> None:
    environment = Scripted({"a": []})
    (example,) = TaskSource(environment).load("train")
    prompt = renderer.render(replace(example, history=(Message("user", "Another question."),)))
    with pytest.raises(EnvironmentFaultError, match="scripted: task 'a' starts otherwise than before"):
        player(environment, Forced([]), renderer).play([prompt], SamplingParams(), lambda key: 0)
    assert environment.started[-1].closed


def test_refuses_answers_of_other_weights(renderer: PromptRenderer) -> None:
    environment = Scripted({"a": []})
    (prompt,) = renderer.render_all(TaskSource(environment).load("train"))
    played = player(environment, Forced([ids_of(renderer, "One.")]), renderer)
    collector = EpisodeCollector(played, TokenBytes.from_tokenizer(renderer.tokenizer))
    with pytest.raises(StaleRolloutError, match="expected completions from weights version 7, found 0"):
        collector.collect([prompt], SamplingParams(), seed=1, rollout_step=7, progress=0.0)


def test_refuses_limits_that_leave_no_room() -> None:
    with pytest.raises(ValueError, match=r"episodes\.max_turns: expected at least 1, found 0"):
        EpisodeLimits(max_turns=0)
