"""Tasks of an environment as a benchmark: forced answers in given worlds, the tiny policy in generated ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException
from transformers import PreTrainedTokenizerBase

from src.data.rendering import PromptRenderer
from src.environments.bfcl.cases import load_cases
from src.environments.bfcl.environment import BfclEnvironment
from src.environments.generated.environment import GeneratedEnvironment
from src.environments.protocol import EpisodeScore, Task
from src.errors import ConfigError
from src.protocol.dialogue import Message
from src.protocol.formats.rest import parse
from src.protocol.regions import DecodedCompletion
from src.protocol.token_bytes import TokenBytes
from src.rollout.engine import Completion
from src.rollout.episodes import EpisodeLimits
from src.rollout.history import History, PlayedEpisode, Turn
from src.train import train
from src.wings.evaluation.answering import EngineGenerate
from src.wings.evaluation.benchmark import Record
from src.wings.evaluation.episodes import EpisodesBenchmark
from src.wings.evaluation.evaluation_folder import record_line
from src.wings.evaluation.run import evaluate
from tests.conftest import SMALL, eval_config, train_config
from tests.data.templates.test_native import template, tokenizer  # noqa: F401  # a fixture
from tests.environments.bfcl.gold import gold_turns
from tests.protocol.conftest import smollm2  # noqa: F401  # a fixture
from tests.rollout.test_episodes import Forced, Scripted, ids_of

RESULT = (Message("observation", "{}", name="find_city"),)
CALL = '<tool_call>\n{"name": "find_city", "arguments": {"name": "Oslo"}}\n</tool_call>'
TINY = ("policy=tiny_native", "device=cpu", "benchmark=episodes", "generation.max_new_tokens=96")


@pytest.fixture
def renderer(tokenizer: PreTrainedTokenizerBase) -> PromptRenderer:  # noqa: F811
    tokenizer.chat_template = template("qwen2_5")
    return PromptRenderer(tokenizer, layout="native")


def engine_of(renderer: PromptRenderer, engine: Forced, **settings: Any) -> EngineGenerate:
    stops = (renderer.tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    options = {"max_new_tokens": 50, "context": None, **settings}
    return EngineGenerate(engine, renderer, TokenBytes.from_tokenizer(renderer.tokenizer), stops, **options)


def test_episodes_are_played_in_batches_and_judged_by_their_world(renderer: PromptRenderer) -> None:
    """Two tasks side by side, then the third. `Script` earns 1 for its first turn, 2 for its second, and is done."""
    environment = Scripted({"a": [], "b": [RESULT], "c": [RESULT]})
    one, call = ids_of(renderer, "One.", CALL)
    engine = Forced([[one, call], [one], [call], [one]])
    benchmark = EpisodesBenchmark(environment, EpisodeLimits(max_turns=2))
    report = benchmark.run(engine_of(renderer, engine, batch_size=2))
    assert [len(asked) for asked in engine.asked] == [2, 1, 1, 1]
    assert {seed for seeds in engine.seeds for seed in seeds} == {0}
    assert [record.id for record in report.records] == ["a", "b", "c"] and report.counts["kind"] == 3
    scores = {"overall": 1.0, "kind": 1.0, "reward/total": 7 / 3, "reward/state": 0.5, "episode/turns": 5 / 3}
    scores |= {"episode/ended_done": 1.0, "episode/ended_turns": 0.0, "episode/malformed": 0.0}
    assert {name: report.scores[name] for name in scores} == pytest.approx(scores)
    last = report.records[2].details
    assert last["tags"] == ["kind"] and last["ending"] == "done"
    first, second = last["turns"]
    assert first["observed"] == [{"role": "user", "name": "", "text": "How many live in Oslo?"}]
    assert first["calls"] == [{"name": "find_city", "arguments": {"name": "Oslo"}}] and first["earned"] == 1.0
    assert second["observed"] == [{"role": "observation", "name": "find_city", "text": "{}"}]
    assert (second["text"], second["tokens"], second["earned"]) == ("One.", len(one), 2.0)
    assert all(script.closed for script in environment.started) and environment.closed


@pytest.mark.parametrize(("settings", "limits"), [({"context": 90}, {}), ({}, {"max_tokens": 90})])
def test_a_prompt_without_room_for_an_answer_has_failed(
    settings: dict[str, int], limits: dict[str, int], renderer: PromptRenderer
) -> None:
    """The prompt has more than 40 tokens, and an answer may have 50."""
    environment = Scripted({"a": []})
    report = EpisodesBenchmark(environment, EpisodeLimits(**limits)).run(engine_of(renderer, Forced([[]]), **settings))
    assert report.scores == {"overall": 0.0, "kind": 0.0}
    assert report.counts == {"overall": 1, "kind": 1, "context_exceeded": 1}
    assert report.records[0].details == {"tags": ["kind"], "ending": "context_exceeded"}


def test_the_environment_is_closed_whatever_happens(renderer: PromptRenderer) -> None:
    """Where the engine fails, and where a record cannot be written; episodes under way are closed too."""
    (one,) = ids_of(renderer, "One.")

    def written(record: Record) -> None:
        raise KeyboardInterrupt

    for engine, on_record, error in ((Forced([]), None, IndexError), (Forced([[one]]), written, KeyboardInterrupt)):
        environment = Scripted({"a": []})
        benchmark = EpisodesBenchmark(environment, EpisodeLimits())
        benchmark.samples()
        environment.closed = False
        with pytest.raises(error):
            benchmark.run(engine_of(renderer, engine), on_record=on_record)
        assert environment.closed and all(script.closed for script in environment.started)


class Given:
    """A candidate whose episodes are given."""

    def __init__(self, *episodes: PlayedEpisode | None) -> None:
        self.episodes = episodes

    def play(self, environment: object, tasks: Sequence[Task], limits: object) -> Iterator[tuple[int, Any]]:
        yield from reversed(list(enumerate(self.episodes[: len(tasks)])))


def played(total: float, parts: dict[str, float], *, success: bool, **counts: int) -> PlayedEpisode:
    """An episode of one answer."""
    answer = Completion(torch.tensor([1]), torch.zeros(1), "stop", 0)
    turn = Turn((), answer, DecodedCompletion("x", parse("x"), torch.zeros(1, dtype=torch.int64)))
    score = EpisodeScore(total, parts, (total,), success)
    return PlayedEpisode((turn,), score, counts, "done", History(torch.tensor([1])))


def test_means_are_over_the_episodes_that_have_a_number() -> None:
    """Tags a row has several of count in each; a world without a reward has no part, and unplayed tasks no mean."""
    environment = Scripted({"a": [], "b": [], "c": []})
    tagged = {"a": ("x", "y"), "b": ("y",), "c": ()}
    environment.tasks = lambda split: [Task(name, {}, tags) for name, tags in tagged.items()]  # type: ignore[method-assign]
    benchmark = EpisodesBenchmark(environment, EpisodeLimits())
    assert [sample.category for sample in benchmark.samples()] == ["x", "y", "train"]
    candidate = Given(
        played(3.0, {"environment": 3.0}, success=True, malformed=2), played(-1.0, {}, success=False), None
    )
    report = benchmark.run(candidate)  # type: ignore[arg-type]
    scores = {"overall": 1 / 3, "x": 1.0, "y": 0.5, "train": 0.0, "reward/total": 1.0, "reward/environment": 3.0}
    assert {name: report.scores[name] for name in scores} == pytest.approx(scores)
    assert report.scores["episode/malformed"] == 1.0 and report.counts["context_exceeded"] == 1
    again = [Record(**json.loads(record_line(record))) for record in report.records]
    assert benchmark.score(again) == (report.scores, report.counts)  # as a resumed evaluation reads them


def test_which_tasks_are_played() -> None:
    environment = GeneratedEnvironment(num_train=4, num_val=40)
    assert [s.id for s in EpisodesBenchmark(environment, EpisodeLimits()).samples()] == [f"val/{i}" for i in range(40)]
    few = EpisodesBenchmark(environment, EpisodeLimits(), split="val_unseen", limit=7).samples()
    assert {sample.id.split("/")[0] for sample in few} == {"val_unseen"}
    assert len({sample.category for sample in few}) == len(few) == 7  # one of each kind
    assert [s.id for s in EpisodesBenchmark(Scripted({"a": []}), EpisodeLimits()).samples()] == ["a"]  # only train
    with pytest.raises(
        ConfigError, match=r"benchmark.episodes.split: generated has no split 'vall'. Did you mean val\?"
    ):
        EpisodesBenchmark(environment, EpisodeLimits(), split="vall")
    with pytest.raises(ConfigError, match=r"benchmark.episodes.limit: expected null or at least 1, found 0"):
        EpisodesBenchmark(environment, EpisodeLimits(), limit=0)


def test_bfcl_is_evaluated_without_a_key(renderer: PromptRenderer) -> None:
    """Gold calls in a model's own format pass the official checker, and one that leaves them out does not."""
    environment = BfclEnvironment(["multi_turn_base"], time_limit=60.0)
    benchmark = EpisodesBenchmark(environment, EpisodeLimits(max_turns=20), limit=1)
    (sample,) = benchmark.samples()
    case = next(case for case in load_cases("multi_turn_base") if case.id == sample.id)
    answers = []
    for steps in gold_turns(case):
        for calls in steps:
            written = [json.dumps({"name": call.name, "arguments": call.parameters}) for call in calls]
            answers.append("\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in written))
        answers.append("Done.")
    gold, silent = ids_of(renderer, *answers), ids_of(renderer, *["Done."] * len(case.question))
    for given, passed in ((gold, 1.0), (silent, 0.0)):
        engine = Forced([[one] for one in given])
        report = benchmark.run(engine_of(renderer, engine, max_new_tokens=400))
        assert report.scores["overall"] == report.scores["reward/passed"] == passed
        assert report.scores["episode/turns"] == len(given) == len(engine.asked)
    assert report.counts["multi_turn_base"] == 1


def test_the_tiny_policy_is_evaluated_and_goes_on_after_an_interruption(tmp_path: Path) -> None:
    wanted = (*TINY, "environment=generated", "benchmark.episodes.limit=8", "generation.batch_size=4")
    report = evaluate(eval_config(tmp_path / "whole", *wanted))["episodes"]
    records = [json.loads(line) for line in (tmp_path / "whole/episodes.jsonl").read_text().splitlines()]
    assert len(records) == 8 and any(turn["calls"] for record in records for turn in record["details"]["turns"])
    assert report.scores["overall"] == sum(record["passed"] for record in records) / 8
    turns = [len(record["details"]["turns"]) for record in records]
    assert report.scores["episode/turns"] == sum(turns) / 8 > 1
    table = (tmp_path / "whole/report.md").read_text()
    assert re.search(rf"\| episode/turns +\| +{sum(turns) / 8:.3f} \|", table)
    assert re.search(rf"\| overall +\| +{100 * report.scores['overall']:.2f}% \| +8 \|", table)
    settings = json.loads((tmp_path / "whole/report.json").read_text())["benchmarks"]["episodes"]["settings"]
    assert settings["limits"]["max_turns"] == 8 and settings["environment"]["num_val"] == 200
    cut = (tmp_path / "whole/episodes.jsonl").read_text().splitlines(keepends=True)[:5]
    (tmp_path / "whole/episodes.jsonl").write_text("".join(cut))
    again = evaluate(eval_config(tmp_path, *wanted, f"resume={tmp_path}/whole"))["episodes"]
    assert again == report
    with pytest.raises(ConfigError, match=r"benchmark.episodes.limits.max_turns was 8, is 1"):
        evaluate(eval_config(tmp_path, *wanted, "episodes.max_turns=1", f"resume={tmp_path}/whole"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"benchmark=episodes: expected an environment, found none. Set environment=generated, say"),
        (
            ["environment=generated", "benchmark.episodes.split=x"],
            r"benchmark.episodes.split: generated has no split 'x'",
        ),
        (["environment=generated", "episodes.max_turns=0"], r"episodes.max_turns: expected at least 1, found 0"),
        (["environment=python"], r"no value for environment.path, environment.rows"),
        (
            ["environment=mcp", "environment.command=[nowhere]", "environment.rows=ROWS", "environment.reward=REWARD"],
            r"MCP server `nowhere` does not start",
        ),
        (
            ["environment=mcp", "environment.command=[nowhere]", "environment.rows=ROWS"],
            r"benchmark=episodes: expected an environment with a reward, found none in mcp",
        ),
    ],
)
def test_what_cannot_be_played_is_said_before_weights_are_read(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.wings.evaluation.answering.load_source", lambda *_: pytest.fail("weights were read first"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Go."}\n')
    (tmp_path / "reward.py").write_text("def one(row, messages):\n    return 1.0\n")
    reward = f"{tmp_path}/reward.py:one"
    overrides = [one.replace("ROWS", str(rows)).replace("REWARD", reward) for one in overrides]
    with pytest.raises((ConfigError, RuntimeError, InstantiationException), match=message):
        evaluate(eval_config(tmp_path, *TINY, *overrides))
    assert not (tmp_path / "fingerprint.json").exists()


def test_in_a_training_on_another_corpus(tmp_path: Path) -> None:
    """Dialogues are trained on, and episodes are played at the start and at the end."""
    few = ("environment=generated", "environment.num_val=4", "callbacks.benchmark.max_new_tokens=64")
    small = [one for one in SMALL if not one.startswith("benchmark=")]
    train(train_config(tmp_path, "experiment=tiny_native", *small, "benchmark=[episodes]", *few))
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    events = [line for line in lines if line["event"] == "benchmark"]
    assert [event["rollout_step"] for event in events] == [0, 1]
    for event in events:
        path = tmp_path / f"benchmarks/episodes/step_{event['rollout_step']:06d}.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert event["episodes/overall"] == sum(record["passed"] for record in records) / 4
        assert event["episodes/episode/turns"] == sum(len(record["details"]["turns"]) for record in records) / 4
