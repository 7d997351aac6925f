"""API-Bank, levels 1 to 3, by the rules of the published evaluation (ToolRL's and the paper's), and by strict ones.

The published rules are lenient, and every quirk of theirs is kept (`published_verdict`), so that scores compare with
the paper's Table 2. The strict score asks for exactly one call, right in name and parameters, and shows what the
lenient rules give away.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from src.environments.conversation import Answer, Generate
from src.errors import BenchmarkDataError, ConfigError
from src.protocol.dialogue import ChatPrompt, ToolCall
from src.protocol.matching import json_equal
from src.wings.evaluation.benchmark import Benchmark, Record, Sample, count_by_category, mean_by_category

log = logging.getLogger(__name__)

LEVELS = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class ApiBankSample:
    """One test prompt, verbatim, and its gold call (of a gold list, the first: the published rule)."""

    prompt: ChatPrompt
    gold: ToolCall


def published_calls(text: str) -> list[Any]:
    r"""The JSON values that the published script takes for calls.

    The lines after the last `<tool_call>`, or of the whole text without one, up to the next `</tool_call>`; lines that
    are no JSON are dropped, JSON values that are no objects are kept.

    >>> published_calls('<tool_call>\n{"name": "A", "parameters": {}}\nnonsense\n7\n</tool_call>')
    [{'name': 'A', 'parameters': {}}, 7]
    """
    found = []
    for line in text.split("<tool_call>")[-1].split("</tool_call>")[0].strip().split("\n"):
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return found


def published_verdict(text: str, gold: ToolCall) -> bool:
    """Whether any call equals the gold one, as the published script decides it.

    Its quirks: further calls cost nothing; an object without `name` or without `parameters` counts as parameters of the
    right tool; a string is parsed once more; a value that has no keys to look for (a number, null) ends the search, and
    so does a string that is no JSON; values compare as in Python, so `1`, `1.0` and `true` are equal.

    >>> published_verdict('{"city": "Oslo"}', ToolCall("Weather", {"city": "Oslo"}))
    True
    """
    try:
        for value in published_calls(text):
            call = json.loads(value) if isinstance(value, str) else value
            if "name" not in call or "parameters" not in call:
                name, parameters = gold.name, call
            else:
                name, parameters = call["name"], call["parameters"]
            if name == gold.name and parameters == gold.parameters:
                return True
    except (TypeError, ValueError, RecursionError):
        return False
    return False


def strict_verdict(answer: Answer, gold: ToolCall) -> bool:
    """Whether the answer makes exactly one call, in one well-formed block, equal to the gold one as JSON."""
    calls = answer.parsed.calls
    return (
        calls is not None
        and answer.parsed.fields.count("tool_call") == 1  # a native format counts its blocks as one
        and len(calls) == 1
        and calls[0].name == gold.name
        and json_equal(calls[0].parameters, gold.parameters)
    )


class ApiBank(Benchmark):
    """399, 67 and 131 single steps.

    Scores: `overall` (micro) and `level_1` … by the published rules, `strict` and `strict_level_1` … by the strict one.
    """

    name = "api_bank"

    def __init__(
        self,
        path: str | Path,
        levels: Sequence[int] = LEVELS,
        on_missing: Literal["error", "skip"] = "error",
    ) -> None:
        """Nothing is read before `samples`.

        Args:
            path: folder of `level-1-api_processed.json` and its two siblings.
            levels: some of 1, 2 and 3; the overall scores are over these.
            on_missing: what a run does without these files: stop before it starts, or leave the benchmark out.

        Raises:
            ValueError: no level, an unknown one, or an unknown `on_missing`.
        """
        if not levels or not set(levels) <= set(LEVELS):
            raise ConfigError(f"benchmark.api_bank.levels: expected some of {list(LEVELS)}, found {list(levels)}.")
        if on_missing not in ("error", "skip"):
            raise ConfigError(f"benchmark.api_bank.on_missing: expected 'error' or 'skip', found {on_missing!r}.")
        self.on_missing = on_missing
        self._levels = sorted(set(levels))
        self._folder = Path(path)
        self._samples: list[Sample] = []

    def samples(self) -> Sequence[Sample]:
        """All of the levels, one after the other, ids as in the published results (`Level1_0`).

        Raises:
            BenchmarkDataError: a file is missing or a record is not as expected.
        """
        if not self._samples:
            self._samples = [sample for level in self._levels for sample in self._read(level)]
        return self._samples

    def answer(self, samples: Sequence[Sample], generate: Generate) -> Iterator[Record]:
        """One answer a sample, judged by both rules."""
        for index, answer in generate([sample.data.prompt for sample in samples]):
            sample = samples[index]
            gold: ToolCall = sample.data.gold
            yield Record(
                id=sample.id,
                category=sample.category,
                passed=published_verdict(answer.published, gold),
                metrics={"strict": float(strict_verdict(answer, gold))},
                details={
                    "text": answer.text,
                    "gold": {"name": gold.name, "parameters": dict(gold.parameters)},
                    "tokens": answer.tokens,
                    "finish": answer.finish,
                },
            )

    def score(self, records: Sequence[Record]) -> tuple[dict[str, float], dict[str, int]]:
        """See the class."""
        scores = mean_by_category(records)
        scores |= {f"strict_{level}": mean for level, mean in mean_by_category(records, "strict").items()}
        counts = count_by_category(records)
        for key, finish in (("truncated", "length"), ("context_exceeded", "context")):
            counts[key] = sum(record.details["finish"] == finish for record in records)
        if records:
            scores["overall"] = sum(record.passed for record in records) / len(records)
            scores["strict"] = sum(record.metrics["strict"] for record in records) / len(records)
        return scores, counts

    def _read(self, level: int) -> Iterator[Sample]:
        path = self._folder / f"level-{level}-api_processed.json"
        if not path.is_file():
            raise BenchmarkDataError(
                f"benchmark.api_bank.path: expected the file {path}, which is not there. Fetch the data with `make "
                "api-bank`, set benchmark.api_bank.path to its folder, or leave it out with "
                "benchmark.api_bank.on_missing=skip."
            )
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BenchmarkDataError(f"{path}: expected a JSON list of samples, found {error}.") from error
        for index, row in enumerate(rows):
            yield Sample(f"Level{level}_{index}", f"level_{level}", _sample(row, f"{path}[{index}]"))


def _sample(row: Any, where: str) -> ApiBankSample:
    try:
        answer = row["answer"][0] if isinstance(row["answer"], list) else row["answer"]
        return ApiBankSample(ChatPrompt(row["system"], row["user"]), ToolCall(answer["name"], answer["parameters"]))
    except (KeyError, IndexError, TypeError) as error:
        raise BenchmarkDataError(
            f"{where}: expected system, user and answer (name and parameters, or a list of such), found "
            f"{type(error).__name__}: {error}."
        ) from error
