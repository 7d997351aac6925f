import pytest

from src.environments.bfcl.cases import CATEGORIES, GROUPS
from src.wings.evaluation.benchmark import Record
from src.wings.evaluation.bfcl.scores import aggregate, score_records

SHARES = {
    "simple": 0.9,
    "java": 0.6,
    "javascript": 0.6,
    "multiple": 0.8,
    "parallel": 0.7,
    "parallel_multiple": 0.5,
    "irrelevance": 0.3,
    "live_simple": 0.5,
    "live_multiple": 0.4,
    "live_parallel": 0.25,
    "live_parallel_multiple": 0.75,
    "live_irrelevance": 0.6,
    "live_relevance": 0.5,
    "multi_turn_base": 0.4,
    "multi_turn_miss_func": 0.3,
    "multi_turn_miss_param": 0.2,
    "multi_turn_long_context": 0.1,
}


def test_every_aggregate():
    scores = aggregate(SHARES)
    expected = {
        "non_live_simple": 0.7,  # (0.9 + 0.6 + 0.6) / 3
        "non_live_ast": 0.675,  # (0.7 + 0.8 + 0.7 + 0.5) / 4
        "non_live": 0.6,  # (0.7 + 0.8 + 0.7 + 0.5 + 0.3) / 5
        # passed of 258, 1053, 16 and 24: 129 + 421.2 + 4 + 18 = 572.2 of 1351
        "live_ast": 572.2 / 1351,
        # and of 882 and 18: 529.2 + 9, in all 1110.4 of 2251
        "live": 1110.4 / 2251,
        "multi_turn": 0.25,
        "relevance_detection": 0.5,
        "irrelevance_detection": 0.45,
        "single_turn": (1150 * 0.675 + 1351 * 1110.4 / 2251) / 2501,
        "overall": (1110.4 / 2251 + 0.6 + 0.25) / 3,
    }
    assert scores == pytest.approx(SHARES | expected)


# Table D.1 of the paper: overall, non-live, live, in percent, each rounded to two digits.
@pytest.mark.parametrize(
    ("overall", "non_live_ast", "live"),
    [
        (77.70, 83.27, 72.95),  # Qwen3-1.7B (Base)
        (78.59, 84.65, 73.43),  # Qwen3-1.7B (ResT)
        (84.58, 88.65, 81.12),  # Qwen3-4B-2507 (ResT)
        (84.11, 90.08, 79.03),  # Qwen3-8B (ResT)
        (72.66, 71.81, 73.39),  # Qwen3-14B (RSFT), the only row whose live score is the higher one
        (84.63, 89.10, 80.81),  # Qwen3-14B (ResT)
    ],
)
def test_single_turn_is_the_papers_overall(overall, non_live_ast, live):
    calls = dict.fromkeys(("simple", "java", "javascript", "multiple", "parallel", "parallel_multiple"), non_live_ast)
    scores = aggregate(calls | dict.fromkeys(GROUPS["live"], live))
    assert scores["single_turn"] == pytest.approx(overall, abs=0.0101)  # three roundings


@pytest.mark.parametrize("missing", CATEGORIES)
def test_nothing_is_computed_from_parts(missing):
    scores = aggregate({name: share for name, share in SHARES.items() if name != missing})
    whole = aggregate(SHARES)
    assert missing not in scores and "overall" not in scores
    assert all(scores[name] == whole[name] for name in scores)
    groups = {name: members for name, members in GROUPS.items() if name in ("live", "non_live", "multi_turn")}
    assert {name for name in groups if name in scores} == {
        name for name, members in groups.items() if missing not in members
    }


def test_no_records_no_scores():
    assert score_records([])[0] == {}


def test_a_subset_of_samples_weighs_categories_by_their_whole_size():
    passed = {"live_multiple": [True], "live_simple": [False, True]}
    records = [
        Record(f"{name}_{index}", name, verdict, details={"error_type": "", "truncated": False})
        for name in GROUPS["live"]
        for index, verdict in enumerate(passed.get(name, [False]))
    ]
    scores, counts = score_records(records)
    assert scores["live"] == pytest.approx((1053 + 258 * 0.5) / 2251)
    assert counts["live_simple"] == 2


def test_failures_are_counted():
    errors = ["context_exceeded", "time_limit", "time_limit", "memory_limit", "value_error:string", ""]
    records = [
        Record(f"java_{index}", "java", not error, details={"error_type": error, "truncated": index < 4})
        for index, error in enumerate(errors)
    ]
    scores, counts = score_records(records)
    assert scores == {"java": pytest.approx(1 / 6)}
    failures = {"truncated": 4, "context_exceeded": 1, "time_limit": 2, "memory_limit": 1}
    assert counts == {"java": 6, "unparsed": 0, "unparsed/java": 0, **failures}


def test_unparsed_answers_are_counted_by_category():
    """Whether they pass (irrelevance) or fail; a record of an older version does not say."""
    told = [("irrelevance", True), ("irrelevance", True), ("irrelevance", False), ("java", True), ("simple", None)]
    records = [
        Record(str(index), category, category == "irrelevance", details={} if says is None else {"unparsed": says})
        for index, (category, says) in enumerate(told)
    ]
    counts = score_records(records)[1]
    found = {key: count for key, count in counts.items() if key.startswith("unparsed")}
    assert found == {"unparsed": 3, "unparsed/irrelevance": 2, "unparsed/java": 1, "unparsed/simple": 0}
