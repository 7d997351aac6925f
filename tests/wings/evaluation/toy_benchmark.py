"""A benchmark of a few tiny-policy prompts, judged by a rule that any text can pass."""

from collections.abc import Iterator, Sequence

from src.environments.conversation import Generate
from src.protocol.dialogue import ChatPrompt
from src.wings.evaluation.benchmark import Benchmark, Record, Sample, count_by_category, mean_by_category

CITIES = ("Oslo", "Lima", "Bern", "Rome", "Cairo", "Quito", "Paris", "Delhi", "Minsk", "Tunis", "Sofia", "Riga")


class ToyBenchmark(Benchmark):
    """A sample passes if its answer has an even number of characters."""

    name = "toy"

    def __init__(self, size: int = len(CITIES)) -> None:
        self._samples = [
            Sample(f"{city}/{i}", "long" if len(city) > 4 else "short", ChatPrompt("get_weather(city)", user))
            for i, city in enumerate(CITIES[:size])
            for user in [f"<user> What is the weather in {city}? </user>"]
        ]

    def samples(self) -> Sequence[Sample]:
        return self._samples

    def answer(self, samples: Sequence[Sample], generate: Generate) -> Iterator[Record]:
        for index, answer in generate([sample.data for sample in samples]):
            sample = samples[index]
            details = {"text": answer.text, "tokens": answer.tokens, "finish": answer.finish}
            yield Record(sample.id, sample.category, len(answer.text) % 2 == 0, {}, details)

    def score(self, records: Sequence[Record]) -> tuple[dict[str, float], dict[str, int]]:
        scores = mean_by_category(records) | {"overall": sum(record.passed for record in records) / len(records)}
        return scores, count_by_category(records)
