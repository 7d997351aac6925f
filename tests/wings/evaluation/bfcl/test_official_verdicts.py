"""The sandbox says what the official runner says, output by output, which here runs in a process of its own."""

import random
from collections import defaultdict
from itertools import islice
from typing import Any

import pytest

from src.environments.bfcl.cases import CATEGORIES, Case, is_multi_turn, load_cases
from src.environments.bfcl.sandbox import Sandbox
from src.wings.evaluation.bfcl.decoding import decode_calls
from tests.environments.bfcl.gold import NEVER_PASS
from tests.environments.bfcl.outputs import MISTAKES, ask_official, multi_turn_output, single_turn_output


@pytest.fixture(scope="module", params=[40, pytest.param(320, marks=pytest.mark.slow)])
def outputs(request: pytest.FixtureRequest) -> dict[str, list[tuple[Case, str, Any]]]:
    """Of every category: (case, mistake, texts)."""
    made = {}
    for category in CATEGORIES:
        rng = random.Random(category)
        cases = load_cases(category)
        mistakes = ["right", "right", "garbage", *MISTAKES]
        build = single_turn_output
        if is_multi_turn(category):
            mistakes += ["fewer turns", "empty turn"]
            build = multi_turn_output
        chosen = [(rng.choice(cases), mistakes[index % len(mistakes)]) for index in range(request.param)]
        made[category] = [(case, mistake, build(rng, case, mistake)) for case, mistake in chosen]
    return made


@pytest.fixture(scope="module")
def official(outputs, tmp_path_factory) -> dict[str, list[tuple[bool, str]]]:
    """(passed, error type) of every output."""
    requests = [
        {
            "kind": "verdict",
            "arguments": {"category": category, "entry": case.entry, "answer": case.answer, "output": output},
        }
        for category in CATEGORIES
        for case, _, output in outputs[category]
    ]
    verdicts = iter(ask_official(requests, tmp_path_factory.mktemp("official")))
    return {category: list(islice(verdicts, len(outputs[category]))) for category in CATEGORIES}


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as sandbox:
        yield sandbox


@pytest.mark.parametrize("category", CATEGORIES)
def test_verdicts_are_official(category, outputs, official, sandbox):
    for (case, mistake, output), (expected, error_type) in zip(outputs[category], official[category], strict=True):
        if is_multi_turn(category):
            turns = [[decode_calls(step) for step in turn] for turn in output]
            verdict = sandbox.check_multi_turn(case.entry, case.answer, turns)
        else:
            verdict = sandbox.check_single_turn(case.entry, category, case.answer, decode_calls(output))
        where = (case.id, mistake, output, error_type, verdict)
        assert verdict.passed == expected, where
        # The official runner itself ends where its checker raises.
        assert verdict.error_type == ("checker_error" if error_type.startswith("crash") else error_type), where


@pytest.mark.parametrize("category", CATEGORIES)
def test_outputs_are_mixed(category, outputs, official):
    """What is compared above has verdicts of both kinds, and those that everyone would expect."""
    passed = defaultdict(list)
    for (case, mistake, _), (expected, _) in zip(outputs[category], official[category], strict=True):
        if case.id not in NEVER_PASS:
            passed[mistake].append(expected)
    results = [expected for mistake in passed for expected in passed[mistake]]
    assert 0.1 * len(results) <= sum(results) <= 0.9 * len(results)
    if not category.endswith("relevance"):
        assert all(passed["right"])
        # A multi-turn case forgives a call whose result and effect the turn does not need.
        never = ["fewer turns"] if is_multi_turn(category) else ["wrong name", "dropped call", "unknown call"]
        assert not any(any(passed[mistake]) for mistake in never)


@pytest.mark.parametrize("outputs", [pytest.param(320, marks=pytest.mark.slow)], indirect=True)
def test_some_outputs_end_an_official_run(official):
    """The comparison has them: an integer of 5,000 digits raises in the official converter of Java literals."""
    assert any(error_type.startswith("crash") for _, error_type in official["java"])
