"""The part that all benchmarks share, on one of ten samples made by hand."""

from collections import Counter

import pytest

from src.environments.conversation import Answer
from src.errors import BenchmarkDataError
from src.protocol.dialogue import ChatPrompt
from src.wings.evaluation.benchmark import (
    Benchmark,
    Ranks,
    Record,
    Sample,
    Subset,
    mean_by_category,
    prepared,
    stratified,
)


class Even(Benchmark):
    """Passes where the answer is an even number; samples 0 to 9, categories low (0 to 6) and high."""

    name = "even"

    def samples(self):
        return [Sample(f"s{i}", "low" if i < 7 else "high", i) for i in range(10)]

    def answer(self, samples, generate):
        for index, answer in generate([ChatPrompt("", str(sample.data)) for sample in samples]):
            yield Record(samples[index].id, samples[index].category, int(answer.text) % 2 == 0)

    def score(self, records):
        return mean_by_category(records), {"all": len(records)}


class Echo:
    """Answers with the question, last question first, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts):
        self.asked += [prompt.user for prompt in prompts]
        for index in reversed(range(len(prompts))):
            yield index, Answer.of(prompts[index].user)


def test_report_by_hand():
    """Low: 0 2 4 6 of seven; high: 8 of three. Records come back in the order of the samples."""
    seen = []
    report = Even().run(Echo(), on_record=seen.append)
    assert report.scores == {"low": 4 / 7, "high": 1 / 3} and report.counts == {"all": 10}
    assert [record.id for record in report.records] == [f"s{i}" for i in range(10)]
    assert [record.id for record in seen] == [f"s{i}" for i in reversed(range(10))]


def test_finished_samples_are_not_asked_again():
    finished = [Record("s2", "low", False), Record("s8", "high", False), Record("gone", "low", True)]
    echo = Echo()
    report = Even().run(echo, finished=finished)
    assert sorted(echo.asked) == ["0", "1", "3", "4", "5", "6", "7", "9"]
    assert report.scores == {"low": 3 / 7, "high": 0.0} and report.counts == {"all": 10}


def test_ranks_share_the_samples_and_all_see_the_same_report():
    """Two ranks, one after the other; the first is played twice, now that the second's records are known."""
    made = {0: [], 1: []}

    def play(rank):
        def gather(records):
            made[rank] = records
            return made[0] + made[1]

        echo = Echo()
        return Even().run(echo, ranks=Ranks(rank, 2, gather)), echo.asked

    play(0)
    second, asked_second = play(1)
    first, asked_first = play(0)
    assert Counter(asked_first + asked_second) == Counter(str(i) for i in range(10))
    assert len(asked_first) == len(asked_second) == 5
    assert first == second == Even().run(Echo())


def test_ids_are_unique():
    class Twice(Even):
        def samples(self):
            return [*super().samples(), Sample("s3", "low", 3)]

    with pytest.raises(ValueError, match="even: expected every sample to have an id of its own"):
        Twice().run(Echo())


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, {"low": 1}),  # no room for both: the one with the larger share
        (2, {"low": 1, "high": 1}),
        (3, {"low": 2, "high": 1}),  # 2.1 and 0.9
        (5, {"low": 4, "high": 1}),  # 3.5 and 1.5: the first of equal remainders
        (9, {"low": 6, "high": 3}),  # 6.3 and 2.7
        (99, {"low": 7, "high": 3}),
    ],
)
def test_a_subset_is_stratified(size, expected):
    samples = Even().samples()
    chosen = stratified(samples, Subset(size, seed=5))
    assert Counter(sample.category for sample in chosen) == expected
    assert chosen == sorted(chosen, key=lambda sample: sample.data)
    assert chosen == stratified(samples, Subset(size, seed=5))


def test_no_category_is_left_out_for_being_small():
    """1,000 and 2 samples; a tenth: 99.8 and 0.2, of which the small one gets its one sample."""
    samples = [Sample(str(i), "big", i) for i in range(1000)] + [Sample(f"t{i}", "tiny", i) for i in range(2)]
    assert Counter(s.category for s in stratified(samples, Subset(100))) == {"big": 99, "tiny": 1}


def test_seeds_choose_differently():
    samples = [Sample(str(i), "a", i) for i in range(1000)]
    chosen = [{s.id for s in stratified(samples, Subset(100, seed))} for seed in (0, 1)]
    assert len(chosen[0] & chosen[1]) < 30  # 10 expected


def test_missing_data_stops_or_is_skipped(caplog):
    class Gone(Even):
        on_missing = "error"

        def samples(self):
            raise BenchmarkDataError("no such file")

    class Skipped(Gone):
        on_missing = "skip"

    with pytest.raises(BenchmarkDataError, match="no such file"):
        prepared([Even(), Gone()])
    kept = prepared([Skipped(), Even()])
    assert [type(benchmark) for benchmark in kept] == [Even]
    assert "even is left out: no such file" in caplog.text
