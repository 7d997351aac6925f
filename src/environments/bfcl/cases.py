"""The BFCL V3 cases: reads the data files of the installed `bfcl-eval`, runs none of its code.

Only the package's data folder is used, found without importing the package: importing it makes folders in its
installation and pulls in every vendor's API client.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from src.errors import BenchmarkDataError, ConfigError
from src.protocol.dialogue import JsonValue

VERSION = "2025.6.14"
"""The state that the paper reports ("updated June 14, 2025"). Later ones change gold answers and formulas."""

INSTALL = f"pip install --no-deps bfcl-eval=={VERSION} mpmath"

_TABLES: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

CATEGORIES: Mapping[str, int] = _TABLES["categories"]
"""Number of cases of every category, in the package's order (`constants/category_mapping.py`)."""

_MULTI_TURN = tuple(name for name in CATEGORIES if name.startswith("multi_turn"))
_LIVE = tuple(name for name in CATEGORIES if name.startswith("live"))
_NON_LIVE = tuple(name for name in CATEGORIES if name not in _MULTI_TURN + _LIVE)
GROUPS: Mapping[str, tuple[str, ...]] = {
    "all": tuple(CATEGORIES),
    "single_turn": _NON_LIVE + _LIVE,
    "non_live": _NON_LIVE,
    "live": _LIVE,
    "multi_turn": _MULTI_TURN,
}
"""Categories by the name of their group."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Attributes:
        id: the package's, e.g. `live_simple_106-63-0`. It gives live_relevance_3-3-0 to two cases, of which the second
            is `live_relevance_3-3-0#2` here.
        category: one of `CATEGORIES`.
        entry: the case as its file holds it (`id`, `question`, `function` or `initial_config`, …), for the checkers.
        functions: function docs that the prompt offers from the start.
        held_back: function docs that only a later turn brings (multi_turn_miss_func), by the index of that turn.
        answer: the possible answers, or the gold calls of each turn; empty for relevance and irrelevance.
    """

    id: str
    category: str
    entry: Json
    functions: Sequence[Json]
    held_back: Mapping[int, Sequence[Json]] = field(default_factory=dict)
    answer: Sequence[JsonValue] = ()

    @property
    def question(self) -> Sequence[Sequence[Mapping[str, str]]]:
        """The given chat messages of every turn; single-turn cases have one turn."""
        turns: Sequence[Sequence[Mapping[str, str]]] = self.entry["question"]
        return turns


def is_multi_turn(category: str) -> bool:
    """Whether calls are executed, over several turns.

    >>> is_multi_turn("multi_turn_base"), is_multi_turn("live_multiple")
    (True, False)
    """
    return category in _MULTI_TURN


def choose_categories(names: Iterable[str]) -> tuple[str, ...]:
    """Categories by their names or those of their groups, in the package's order.

    >>> choose_categories(["java", "multi_turn_base", "java"])
    ('java', 'multi_turn_base')

    Raises:
        ValueError: an unknown name, or no name at all.
    """
    names = list(names)
    unknown = [name for name in names if name not in CATEGORIES and name not in GROUPS]
    if unknown or not names:
        raise ConfigError(
            f"benchmark.bfcl.categories: expected some of {', '.join([*GROUPS, *CATEGORIES])}, found "
            f"{', '.join(map(str, unknown)) or 'an empty list'}."
        )
    chosen = {category for name in names for category in GROUPS.get(name, (name,))}
    return tuple(category for category in CATEGORIES if category in chosen)


def data_folder() -> Path:
    """Where the installed package keeps its data.

    Raises:
        BenchmarkDataError: the package is not installed, or in another version.
    """
    try:
        found = version("bfcl-eval")
    except PackageNotFoundError:
        found = None
    spec = find_spec("bfcl_eval")  # of a top-level package: does not run it
    if found is None or spec is None or not spec.submodule_search_locations:
        raise BenchmarkDataError(f"bfcl: the data and scorers of bfcl-eval are not installed. Run: {INSTALL}")
    if found != VERSION:
        raise BenchmarkDataError(
            f"bfcl: expected bfcl-eval {VERSION}, found {found}, which has other gold answers. Run: {INSTALL}"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def load_cases(category: str, folder: Path | None = None) -> list[Case]:
    """All cases of a category, ordered as the package's `load_file(sort_by_id=True)`.

    Args:
        category: one of `CATEGORIES`.
        folder: the data folder; None: the installed package's.

    Raises:
        BenchmarkDataError: the package is missing or another version, or a file is missing, damaged or incomplete.
    """
    folder = data_folder() if folder is None else folder
    path = folder / f"BFCL_v3_{category}.json"
    keys = ("involved_classes", "initial_config") if is_multi_turn(category) else ("function",)
    entries = sorted(_read(path, "id", "question", *keys), key=lambda entry: _index(entry["id"]))
    if len(entries) != CATEGORIES[category]:
        raise BenchmarkDataError(
            f"{path}: expected {CATEGORIES[category]} cases, found {len(entries)}. Run again: {INSTALL}"
        )
    answers: dict[str, Sequence[JsonValue]] = {}
    if not category.endswith("relevance"):  # there only the presence of a call counts
        answer_path = folder / "possible_answer" / path.name
        answers = {row["id"]: row["ground_truth"] for row in _read(answer_path, "id", "ground_truth")}
        if missing := [entry["id"] for entry in entries if entry["id"] not in answers]:
            raise BenchmarkDataError(f"{answer_path}: no answer to {missing[0]}. Run again: {INSTALL}")
    cases: list[Case] = []
    for entry in entries:
        case_id = entry["id"] + "#2" * any(case.id == entry["id"] for case in cases[-1:])
        functions, held_back = _offered(entry, folder) if is_multi_turn(category) else (entry["function"], {})
        cases.append(Case(case_id, category, entry, functions, held_back, answers.get(entry["id"], ())))
    return cases


def _offered(entry: Json, folder: Path) -> tuple[list[Json], dict[int, list[Json]]]:
    """Function docs of a multi-turn case, now and later (the package's `process_multi_turn_test_case`)."""
    functions = [doc for name in entry["involved_classes"] for doc in class_functions(folder, name)]
    held_back: dict[int, list[Json]] = {}
    for turn, names in entry.get("missed_function", {}).items():
        held_back[int(turn)] = []
        for name in names:
            # the first of that name, and no error where there is none
            position = next((index for index, doc in enumerate(functions) if doc["name"] == name), None)
            if position is not None:
                held_back[int(turn)].append(functions.pop(position))
    return functions, held_back


@cache
def class_functions(folder: Path, class_name: str) -> tuple[Json, ...]:
    """Function docs of a multi-turn backend, in the package's order.

    Args:
        folder: the data folder.
        class_name: e.g. `GorillaFileSystem`.
    """
    path = folder / "multi_turn_func_doc" / _TABLES["function_files"][class_name]
    return tuple(_read(path, "name", "description", "parameters"))


def _index(case_id: str) -> int:
    """The running number: 3 of `simple_3`, 19 of `live_simple_19-3-15`."""
    return int(case_id.rsplit("_", 1)[1].split("-")[0])


def _read(path: Path, *keys: str) -> Iterator[Json]:
    """The objects of a file with one a line, each with at least these keys."""
    if not path.is_file():
        raise BenchmarkDataError(f"{path}: not found. Run again: {INSTALL}")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise BenchmarkDataError(f"{path}:{number}: expected JSON, found {line[:80]!r}.") from error
            if not isinstance(row, dict) or not row.keys() >= set(keys):
                raise BenchmarkDataError(
                    f"{path}:{number}: expected an object with {', '.join(keys)}, found {line[:80]!r}. "
                    f"Run again: {INSTALL}"
                )
            yield row
