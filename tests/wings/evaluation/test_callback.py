"""Benchmarks inside real trainings of the tiny policy."""

import json
from pathlib import Path

import pytest
import torch

from src.data.rendering import PromptRenderer
from src.environments.bfcl.cases import CATEGORIES
from src.environments.conversation import Answer
from src.errors import BenchmarkDataError
from src.models.loading.loading import PolicyConfig, load_policy
from src.protocol.token_bytes import TokenBytes
from src.rollout.native.engine import NativeEngine
from src.train import train
from src.training import ranks as training
from src.wings.evaluation.answering import EngineGenerate
from src.wings.evaluation.benchmark import Ranks
from src.wings.evaluation.callback import BenchmarkCallback
from src.wings.evaluation.synthetic import SyntheticBenchmark
from tests.conftest import ROOT, SMALL, needs_shared_data, train_config

RUN = (
    *SMALL,
    "data.train.num_train=64",
    "data.train.num_val=4",
    "updates.rollout_steps=3",
    "trainer.val_check_interval=3",
    "sampling.max_new_tokens=80",
    "optimizer.learning_rate=1e-3",
    "optimizer.warmup_steps=0",
)
ON = ("benchmark=[synthetic]", "benchmark.synthetic.size=12", "callbacks.benchmark.every_n_rollout_steps=2")


def _events(folder: Path, kind: str) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines if line["event"] == kind]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("on")
    train(train_config(folder, *RUN, *ON, "callbacks.checkpoint.every_n_rollout_steps=3"))
    return folder


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_training_is_bit_identical_without_it(evaluated, tmp_path):
    train(train_config(tmp_path, *RUN))
    for kind in ("rollout_step", "validation"):
        assert _events(tmp_path, kind) == _events(evaluated, kind)
    on, off = (_weights(folder / "checkpoints/last.ckpt") for folder in (evaluated, tmp_path))
    assert on.keys() == off.keys() and all(torch.equal(on[name], off[name]) for name in on)
    assert not _events(tmp_path, "benchmark")


def test_it_runs_at_the_start_every_n_steps_and_at_the_end(evaluated):
    events = _events(evaluated, "benchmark")
    assert [event["rollout_step"] for event in events] == [0, 2, 3]
    for event in events:
        path = evaluated / f"benchmarks/synthetic/step_{event['rollout_step']:06d}.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(records) == 12
        assert event["synthetic/overall"] == sum(record["passed"] for record in records) / 12
    summary = json.loads((evaluated / "summary.json").read_text())
    assert summary["start"]["synthetic/overall"] == events[0]["synthetic/overall"]
    assert summary["final"]["synthetic/overall"] == events[-1]["synthetic/overall"]


def test_scores_are_those_of_the_weights_of_that_step(evaluated):
    """The first evaluation is the untrained policy's, the last one the checkpoint's: answered again from the files."""
    loaded = load_policy(PolicyConfig(path=ROOT / "src/models/tiny", dtype="float32"))
    benchmark = SyntheticBenchmark(size=12, seed=1000)
    generate = EngineGenerate(
        NativeEngine(loaded.policy.model),
        PromptRenderer(loaded.tokenizer, "compact"),
        TokenBytes.from_tokenizer(loaded.tokenizer),
        loaded.stop_token_ids,
        max_new_tokens=80,
        context=1024,
    )
    for step in (0, 3):
        if step:
            state = _weights(evaluated / "checkpoints/last.ckpt")
            loaded.policy.load_state_dict({key.removeprefix("policy."): value for key, value in state.items()})
        lines = (evaluated / f"benchmarks/synthetic/step_{step:06d}.jsonl").read_text().splitlines()
        details = {record["id"]: record["details"] for record in map(json.loads, lines)}
        report = benchmark.run(generate)
        assert {record.id: json.loads(json.dumps(record.details)) for record in report.records} == details


def test_a_resumed_run_goes_on_where_it_was(evaluated, tmp_path):
    """From the end of 3 steps to 5: step 4 is due, 5 is the end; the start is not evaluated again."""
    train(train_config(tmp_path, *RUN, *ON, "updates.rollout_steps=5", f"ckpt_path={evaluated}/checkpoints/last.ckpt"))
    assert [event["rollout_step"] for event in _events(tmp_path, "benchmark")] == [4, 5]


def test_a_subset_is_the_same_every_time(tmp_path):
    train(train_config(tmp_path, *RUN, *ON, "updates.rollout_steps=2", "trainer.val_check_interval=2",
                       "callbacks.benchmark.subset=8", "callbacks.benchmark.at_end=false",
                       "callbacks.benchmark.every_n_rollout_steps=1"))  # fmt: skip
    paths = sorted((tmp_path / "benchmarks/synthetic").iterdir())
    assert [path.name for path in paths] == ["step_000000.jsonl", "step_000001.jsonl"]
    ids = [[json.loads(line)["id"] for line in path.read_text().splitlines()] for path in paths]
    assert len(ids[0]) == 8 and ids[0] == ids[1]


@needs_shared_data
def test_bfcl_and_api_bank_inside_a_training(random_policy, shared_data, tmp_path):
    """Random weights make no calls: only irrelevance can pass, and every score of both benchmarks is there."""
    train(
        train_config(
            tmp_path, *RUN, f"policy.path={random_policy}", "prompt.layout=published", "data.max_prompt_tokens=2000",
            "updates.rollout_steps=1", "trainer.val_check_interval=1", "benchmark=[bfcl,api_bank]",
            f"benchmark.api_bank.path={shared_data}/api_bank", "callbacks.benchmark.subset=20",
            "callbacks.benchmark.max_new_tokens=4", "callbacks.benchmark.at_start=false",
        )
    )  # fmt: skip
    (scores,) = _events(tmp_path, "benchmark")
    assert scores["bfcl/irrelevance_detection"] == 1
    assert {key: scores[f"bfcl/unparsed/{key}"] for key in CATEGORIES} == dict.fromkeys(CATEGORIES, 0.0)
    assert {scores[f"bfcl/{key}"] for key in ("non_live_ast", "multi_turn", "live_relevance")} == {0.0}
    assert scores["bfcl/overall"] > 0 == scores["api_bank/overall"] == scores["api_bank/strict"]
    for name in ("bfcl", "api_bank"):
        assert len((tmp_path / f"benchmarks/{name}/step_000001.jsonl").read_text().splitlines()) == 20


def test_missing_data_stops_the_run_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("src.training.run.load_policy", lambda *_, **__: pytest.fail("loaded first"))
    overrides = (*RUN, "benchmark=[api_bank]", f"benchmark.api_bank.path={tmp_path}/nowhere")
    with pytest.raises(BenchmarkDataError, match=r"benchmark\.api_bank\.path: expected the file .*nowhere/level-1"):
        train(train_config(tmp_path, *overrides))
    with pytest.raises(pytest.fail.Exception, match="loaded first"):
        train(train_config(tmp_path, *overrides, "benchmark.api_bank.on_missing=skip"))


@pytest.mark.parametrize("key", ["subset", "batch_size"])
def test_a_size_below_one_is_refused_by_its_key(key):
    with pytest.raises(ValueError, match=rf"callbacks\.benchmark\.{key}: expected at least 1, found 0"):
        BenchmarkCallback({}, 1, **{key: 0})


def test_an_interval_below_one_is_refused(tmp_path):
    with pytest.raises(Exception, match=r"callbacks\.benchmark\.every_n_rollout_steps: expected at least 1, found 0"):
        train(train_config(tmp_path, *RUN, "callbacks.benchmark.every_n_rollout_steps=0"))


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    benchmark = SyntheticBenchmark(size=7, seed=1000)
    asked = []

    def generate(prompts):
        asked.extend(prompts)
        return ((i, Answer.of("<response> No. </response>")) for i in range(len(prompts)))

    report = benchmark.run(
        generate, ranks=Ranks(rank, 2, lambda own: [r for part in training.Ranks().gather(own) for r in part])
    )
    Path(folder, f"rank_{rank}.json").write_text(
        json.dumps([len(asked), report.scores, [r.id for r in report.records]])
    )
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_the_samples_and_both_get_the_report(tmp_path):
    """Seven dialogues, four for the first process and three for the second; each is asked about by one of them."""
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    assert first[1:] == second[1:] and len(first[2]) == len(set(first[2])) == 7
    prompts = []

    def generate(batch):
        prompts.extend(batch)
        return ((i, Answer.of("<response> No. </response>")) for i in range(len(batch)))

    alone = SyntheticBenchmark(size=7, seed=1000).run(generate)
    assert first[1] == alone.scores and first[2] == [record.id for record in alone.records]
    assert first[0] + second[0] == len(prompts) and min(first[0], second[0]) >= 3
