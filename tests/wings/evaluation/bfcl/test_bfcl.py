import json
from collections.abc import Iterator, Sequence

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from src.protocol.dialogue import ChatPrompt
from src.wings.evaluation.benchmark import Answer
from src.wings.evaluation.bfcl.bfcl import Bfcl
from src.wings.evaluation.bfcl.dataset import CATEGORIES
from src.wings.evaluation.samples import Subset
from tests.conftest import ROOT

GARBAGE = '<tool_call>\n{"name": "\\ud800", "parameters": {"x": NaN, "y": "\\udfff"}}\n</tool_call>'


class Saying:
    """The same answer to every prompt."""

    def __init__(self, text: str, finish: str = "stop") -> None:
        self.text, self.finish, self.asked = text, finish, 0

    def __call__(self, prompts: Sequence[ChatPrompt]) -> Iterator[tuple[int, Answer]]:
        for index in range(len(prompts)):
            self.asked += 1
            yield index, Answer(self.text, Answer.of(self.text).parsed, 3, self.finish)


def test_silence_passes_irrelevance_and_nothing_else():
    report = Bfcl(["non_live", "live_relevance", "multi_turn_miss_param"]).run(Saying("Hm."), subset=Subset(100))
    shares = {name: report.scores[name] for name in CATEGORIES if name in report.scores}
    assert shares == {name: float(name == "irrelevance") for name in shares}
    assert report.scores["non_live"] == pytest.approx(0.2)


def test_prompts_that_do_not_fit_fail_and_are_counted():
    report = Bfcl(["irrelevance", "multi_turn_base"]).run(Saying("", "context"), subset=Subset(12))
    assert not any(record.passed for record in report.records)
    assert {record.details["error_type"] for record in report.records} == {"context_exceeded"}
    assert report.counts["context_exceeded"] == 12


def test_records_are_json_whatever_the_model_wrote():
    report = Bfcl(["java", "live_relevance", "multi_turn_base"]).run(Saying(GARBAGE, "length"), subset=Subset(30))
    for record in report.records:
        text = json.dumps(dict(record.details), ensure_ascii=False, allow_nan=False)
        assert json.loads(text.encode("utf-8")) == record.details
    passed = {record.category for record in report.records if record.passed}
    assert passed == {"live_relevance"}  # any call will do
    assert report.counts["truncated"] == 30
    stopped = [record for record in report.records if record.category == "multi_turn_base"]
    assert stopped and all(len(record.details["turns"][0]) == 21 for record in stopped)


def test_finished_samples_are_not_asked_again():
    benchmark = Bfcl(["java", "live_relevance"])
    whole = benchmark.run(Saying("Hm."), subset=Subset(20))
    again = Saying("Hm.")
    report = benchmark.run(again, subset=Subset(20), finished=whole.records[:15])
    assert again.asked == 5
    assert report == whole


def test_the_worker_is_gone_after_a_failure():
    benchmark = Bfcl(["simple"])

    def broken(prompts: Sequence[ChatPrompt]) -> Iterator[tuple[int, Answer]]:
        yield 0, Answer.of(GARBAGE)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        benchmark.run(broken)
    assert benchmark._sandbox._worker is None


def test_the_config_holds_the_defaults():
    config = OmegaConf.load(ROOT / "configs" / "benchmark" / "bfcl.yaml")
    benchmark = instantiate(config)
    assert isinstance(benchmark, Bfcl)
    default = Bfcl()
    assert {name: vars(benchmark)[name] for name in ("_categories", "_wording", "_max_concurrent", "on_missing")} == {
        name: vars(default)[name] for name in ("_categories", "_wording", "_max_concurrent", "on_missing")
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"turn_wording": "ToolRL"}, "benchmark.bfcl.turn_wording: expected 'official' or 'toolrl', found 'ToolRL'"),
        ({"on_missing": "ignore"}, "benchmark.bfcl.on_missing: expected 'error' or 'skip', found 'ignore'"),
        ({"max_concurrent": 0}, "benchmark.bfcl.max_concurrent: expected at least 1, found 0"),
        ({"time_limit": 0}, "benchmark.bfcl.time_limit: expected seconds above 0, found 0"),
        ({"categories": ["all", "chatable"]}, "found chatable"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Bfcl(**settings)
