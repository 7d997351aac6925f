"""Evaluation from the command line: the right model answers, a resumed evaluation is the uninterrupted one."""

import json
import logging
import re
import runpy
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from src.config.guard import Ways
from src.errors import BenchmarkDataError, ConfigError
from src.rollout.native.engine import NativeEngine
from src.wings.evaluation import answering
from src.wings.evaluation.benchmark import Record
from src.wings.evaluation.evaluation_folder import RecordError, RecordStore
from src.wings.evaluation.resolving import load_source, resolve_model
from src.wings.evaluation.run import evaluate
from src.wings.exporting.folder import export
from tests.conftest import ROOT, eval_config
from tests.wings.evaluation.toy_benchmark import CITIES, ToyBenchmark

TINY = ROOT / "src/models/tiny"
TOY = ("+benchmark.toy._target_=tests.wings.evaluation.toy_benchmark.ToyBenchmark", "generation.max_new_tokens=20")


def run(folder: Path, *overrides: str, keep: tuple[str, ...] = TOY):
    return evaluate(eval_config(folder, *keep, "device=cpu", *overrides))


def texts(folder: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (folder / "toy.jsonl").read_text().splitlines()]
    return {line["id"]: line["details"]["text"] for line in lines}


@pytest.fixture
def prompts_generated(monkeypatch) -> list[int]:
    """Number of prompts in every call of the engine, but for the one that compares it with its model."""
    monkeypatch.setattr(answering, "find_ways", lambda *_: Ways("packed", "shared"))
    monkeypatch.setattr(answering, "check_engine", lambda *_: None)
    counts: list[int] = []
    generate = NativeEngine.generate

    def counted(self, prompts, params, seeds):
        counts.append(len(prompts))
        return generate(self, prompts, params, seeds)

    monkeypatch.setattr(NativeEngine, "generate", counted)
    return counts


def interrupt_after(count: int, monkeypatch) -> None:
    """Ctrl-C right after so many records were written."""
    append, written = RecordStore.append, []

    def counted(self: RecordStore, record: Record) -> None:
        append(self, record)
        written.append(record)
        if len(written) == count:
            raise KeyboardInterrupt

    monkeypatch.setattr(RecordStore, "append", counted)


def test_answers_are_the_models_own_greedy_ones(tmp_path):
    """The same prompts through transformers' `generate`, token by token; the best two are 0.2 apart at the closest."""
    run(tmp_path, "policy=tiny")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(TINY), AutoTokenizer.from_pretrained(TINY)
    answered = texts(tmp_path)
    for sample in ToyBenchmark().samples():
        messages = [
            {"role": "system", "content": sample.data.system},
            {"role": "user", "content": sample.data.user},
        ]
        given = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        made = model.generate(**given, max_new_tokens=20, do_sample=False)[0, given["input_ids"].shape[1] :]
        assert answered[sample.id] == tokenizer.decode(made, skip_special_tokens=True), sample.id


def test_a_checkpoint_answers_with_its_own_weights(trained_run, tmp_path):
    """As run folder, as checkpoint and exported it says the same; the policy that it started from says otherwise."""
    checkpoint = trained_run / "checkpoints/last.ckpt"
    loaded = load_source(resolve_model(eval_config(tmp_path, f"model={checkpoint}")))
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(state[f"policy.model.{name}"], value) for name, value in loaded.model.state_dict().items())
    export(loaded.model, loaded.tokenizer, tmp_path / "exported")
    run(tmp_path / "run", f"model={trained_run}", "checkpoint=last")
    run(tmp_path / "file", f"model={checkpoint}")
    run(tmp_path / "start", "policy=tiny")
    assert texts(tmp_path / "run") == texts(tmp_path / "file")
    assert texts(tmp_path / "run") != texts(tmp_path / "start")
    # exported weights lie elsewhere in memory, for which kernels may round otherwise: the same numbers, and in use
    exported = load_source(resolve_model(eval_config(tmp_path, f"model={tmp_path}/exported"))).model.state_dict()
    assert all(torch.equal(state[f"policy.model.{name}"], value) for name, value in exported.items())
    run(tmp_path / "folder", f"model={tmp_path}/exported")
    assert texts(tmp_path / "folder") != texts(tmp_path / "start")


def test_the_folder_tells_what_was_run(trained_run, tmp_path):
    reports = run(tmp_path, f"model={trained_run}", "subset.size=6", "subset.seed=3", "model_name=mine")
    report = json.loads((tmp_path / "report.json").read_text())
    toy = report["benchmarks"]["toy"]
    assert toy["scores"] == reports["toy"].scores and toy["counts"] == {"short": 3, "long": 3}
    assert toy["settings"]["_target_"].endswith("ToyBenchmark") and toy["resumed_samples"] == 0
    assert report["model"]["name"] == "mine" and report["model"]["kind"] == "run"
    assert report["model"]["checkpoint"] == str(trained_run / "checkpoints/best.ckpt")
    assert report["prompt"]["layout"] == "compact"  # from the run
    assert report["generation"] == {"max_new_tokens": 20, "context": 1024, "batch_size": 64}
    assert (report["subset"], report["seed"]) == ({"size": 6, "seed": 3}, 1)
    assert report["command"].startswith("python ") and report["versions"]["torch"] == version("torch")
    lines = [json.loads(line) for line in (tmp_path / "toy.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and set(lines[0]) == {"id", "category", "passed", "metrics", "details"}
    tables = (tmp_path / "report.md").read_text()
    assert "# mine" in tables and "toy: all scores, n = 6: a stratified subset, seed 3" in tables


def test_resumed_evaluation_is_the_uninterrupted_one(tmp_path, monkeypatch, caplog, prompts_generated):
    """Cut after 5 of 12 records, in the second batch of 4, and by a torn sixth line: 7 prompts are left."""
    settings = ("policy=tiny", "generation.batch_size=4")
    whole = run(tmp_path / "whole", *settings)
    assert prompts_generated == [4, 4, 4]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(5, patch)
        run(tmp_path / "cut", *settings)
    assert re.search(rf"to go on: python .*resume={tmp_path}/cut", caplog.text)
    assert not (tmp_path / "cut/report.json").exists()
    with (tmp_path / "cut/toy.jsonl").open("a") as file:
        file.write('{"id": "Riga/11", "categ')
    prompts_generated.clear()
    resumed = run(tmp_path / "elsewhere", *settings, f"resume={tmp_path}/cut")
    assert prompts_generated == [4, 3]
    assert resumed == whole
    for name in ("toy.jsonl", "report.md"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    first, second = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "cut"))
    assert second["benchmarks"]["toy"].pop("resumed_samples") == 5
    for report in (first, second):
        report["benchmarks"]["toy"].pop("seconds")
    assert second["benchmarks"]["toy"].items() <= first["benchmarks"]["toy"].items()
    assert first["model"] == second["model"]
    prompts_generated.clear()
    assert run(tmp_path, *settings, f"resume={tmp_path}/cut") == whole and prompts_generated == []


def test_another_evaluation_is_not_resumed(trained_run, tmp_path):
    run(tmp_path / "done", "policy=tiny", "+benchmark.toy.size=2")
    resume = f"resume={tmp_path}/done"
    with pytest.raises(ConfigError, match=r"generation.max_new_tokens was 20, is 21; subset was None, is \{'size': 1"):
        run(tmp_path, "policy=tiny", "+benchmark.toy.size=2", "generation.max_new_tokens=21", "subset.size=1", resume)
    with pytest.raises(ConfigError, match=r"benchmark.toy.size was 2, is absent"):
        run(tmp_path, "policy=tiny", resume)
    with pytest.raises(ConfigError, match=r"model.weights was '\w+…, is '\w+…\. Give the same"):
        run(tmp_path, f"model={trained_run}", "+benchmark.toy.size=2", resume)
    with pytest.raises(ConfigError, match=r"done' holds an evaluation already. To continue it: resume="):
        run(tmp_path / "done", "policy=tiny", "+benchmark.toy.size=2")
    with pytest.raises(ConfigError, match=r"expected the folder of an evaluation, found no fingerprint.json"):
        run(tmp_path, "policy=tiny", f"resume={tmp_path}/typo")


def test_the_same_model_may_lie_elsewhere_and_be_trained_further(trained_run, tmp_path):
    """A moved run is the same model; its checkpoint of another step is not."""
    run(tmp_path / "done", f"model={trained_run}", "checkpoint=last", "+benchmark.toy.size=2")
    moved = tmp_path / "moved"
    (moved / "checkpoints").mkdir(parents=True)
    (moved / "config.yaml").write_bytes((trained_run / "config.yaml").read_bytes())
    content = torch.load(trained_run / "checkpoints/last.ckpt", weights_only=True)
    (moved / "checkpoints/renamed.ckpt").write_bytes((trained_run / "checkpoints/last.ckpt").read_bytes())
    again = ("+benchmark.toy.size=2", f"resume={tmp_path}/done")
    run(tmp_path, f"model={moved}", "checkpoint=renamed", *again)
    content["state_dict"]["policy.model.model.norm.weight"][7] += 1e-3
    torch.save(content, moved / "checkpoints/further.ckpt")
    with pytest.raises(ConfigError, match=r"model.weights was '\w+…, is '\w+…\. Give the same"):
        run(tmp_path, f"model={moved}", "checkpoint=further", *again)


def test_a_damaged_record_stops_the_resumption(tmp_path):
    run(tmp_path / "done", "policy=tiny", "+benchmark.toy.size=3")
    path = tmp_path / "done/toy.jsonl"
    first, second, third = path.read_text().splitlines()
    path.write_text(f"{first}\n{second[:30]}\n{third}\n")
    with pytest.raises(RecordError, match=r"toy.jsonl, line 2: expected a JSON object"):
        run(tmp_path, "policy=tiny", "+benchmark.toy.size=3", f"resume={tmp_path}/done")


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (
            ["policy=tiny"],
            ConfigError,
            r"benchmark: expected at least one, found none. E.g. benchmark=\[api_bank,bfcl,",
        ),
        (["benchmark=[synthetic]"], ConfigError, r"model, policy: expected exactly one of them, found neither"),
        (["policy=tiny", "device=tpu"], ConfigError, r"device: expected auto, cpu or cuda, found 'tpu'"),
        (["policy=tiny", "generation.batch_size=0"], Exception, r"generation.batch_size: expected at least 1, found 0"),
        (["policy=tiny", "subset.size=0"], ValueError, r"subset.size: expected at least 1, found 0"),
        (
            ["policy=tiny", "benchmark=[api_bank]", "benchmark.api_bank.path=nowhere"],
            BenchmarkDataError,
            r"nowhere",
        ),
        (
            ["policy=tiny", "benchmark=[api_bank]", "benchmark.api_bank={path: nowhere, on_missing: skip}"],
            ConfigError,
            r"benchmark: no data for any of \['api_bank'\]",
        ),
    ],
)
def test_what_cannot_run_stops_before_weights_are_read(overrides, error, message, tmp_path, monkeypatch):
    monkeypatch.setattr("src.wings.evaluation.answering.load_source", lambda *_: pytest.fail("weights were read first"))
    with pytest.raises(error, match=message):
        evaluate(eval_config(tmp_path, *overrides))
    assert not (tmp_path / "fingerprint.json").exists()


def test_a_context_beyond_the_models_positions_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"generation.context: expected at most the model's 1024, found 4096"):
        run(tmp_path, "policy=tiny", "generation.context=4096")


def test_prompts_that_do_not_fit_are_not_answered(tmp_path):
    """The toy prompts have between 20 and 64 tokens."""
    run(tmp_path, "policy=tiny", "generation.context=20")
    assert set(texts(tmp_path).values()) == {""} and len(texts(tmp_path)) == len(CITIES)


def command_line(monkeypatch, *arguments: str) -> None:
    """`python src/eval.py …` in this process; Hydra's logging goes when it ends."""
    monkeypatch.setattr(sys, "argv", ["src/eval.py", *arguments])
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        runpy.run_path(str(ROOT / "src/eval.py"), run_name="__main__")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def test_command_line(tmp_path, monkeypatch):
    """Twice the same command, the second time with resume: log and results of both in one folder."""
    arguments = ["policy=tiny", *TOY, "subset.size=2", f"paths.log_dir={tmp_path}", "device=cpu"]
    command_line(monkeypatch, *arguments)
    (folder,) = (tmp_path / "eval/runs").iterdir()
    report = json.loads((folder / "report.json").read_text())
    assert report["command"].startswith("python src/eval.py policy=tiny +benchmark.toy._target_=")
    assert re.search(r"\| overall +\| +\d+\.00% \|", (folder / "eval.log").read_text())
    command_line(monkeypatch, *arguments, f"resume={folder}")
    assert list((tmp_path / "eval/runs").iterdir()) == [folder]
    assert json.loads((folder / "report.json").read_text())["benchmarks"]["toy"]["resumed_samples"] == 2
    assert (folder / "eval.log").read_text().count("# tiny") == 2


def test_an_interruption_ends_with_its_own_exit_code(tmp_path, monkeypatch):
    interrupt_after(1, monkeypatch)
    with pytest.raises(SystemExit) as stopped:
        command_line(monkeypatch, "policy=tiny", *TOY, f"paths.log_dir={tmp_path}", "device=cpu")
    assert stopped.value.code == 130
