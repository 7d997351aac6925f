"""The section of a page: how many groups are shown, what is said of them, what hostile texts can do."""

import json
import logging
import re
from itertools import pairwise

import pytest

from src.wings.reporting.inspector.rollout_records import GroupPlace, InspectorError
from src.wings.reporting.inspector.section import InspectedRun, evenly, section, standalone_page
from tests.wings.reporting.inspector.samples import (
    CALL,
    HOSTILE,
    episode,
    episode_record,
    group,
    old_record,
    record,
    run_folder,
)
from tests.wings.reporting.inspector.test_encoding import Page


def payload(fragment):
    (data,) = re.findall(r'<script type="application/json" data-ri="data">(.*)</script>', fragment.html)
    return json.loads(data)


def runs_of(tmp_path, *records):
    return [InspectedRun(f"run {i}", run_folder(tmp_path / str(i), some), "rest") for i, some in enumerate(records)]


def test_all_groups_are_shown_where_there_is_room(tmp_path):
    runs = runs_of(tmp_path, [*group(0), *group(5)], group(0, example="other/1"))
    fragment = section(runs)
    assert "All 3 prompt groups that were logged." in fragment.html
    assert [(one["run"], one["step"], one["source"]) for one in payload(fragment)["groups"]] == [
        (0, 0, "doc"),
        (0, 5, "doc"),
        (1, 0, "other"),
    ]


def test_a_budget_thins_out_evenly_and_is_kept(tmp_path):
    steps = [step for step in range(100)]
    runs = runs_of(tmp_path, [one for step in steps for one in group(step)], [*group(0), *group(99)])
    whole = payload(section(runs))
    full = len(json.dumps(whole, separators=(",", ":")))
    budget = full // 4
    fragment = section(runs, max_bytes=budget)
    content = payload(fragment)
    found = [one["step"] for one in content["groups"] if one["run"] == 0]
    assert found[0] == 0 and found[-1] == 99
    gaps = {after - before for before, after in pairwise(found)}
    assert len(found) < 50 and max(gaps) - min(gaps) <= 1
    assert len(json.dumps(content, separators=(",", ":"))) <= budget
    assert [one["step"] for one in content["groups"] if one["run"] == 1] == [0, 99]
    assert f"{len(found) + 2} of the 102 prompt groups" in fragment.html
    assert f"run 0 {len(found)} of 100, run 1 2 of 2" in fragment.html


def test_the_first_and_last_group_are_there_whatever_they_take(tmp_path, caplog):
    runs = runs_of(tmp_path, [one for step in range(9) for one in group(step)])
    fragment = section(runs, max_bytes=10)
    assert [one["step"] for one in payload(fragment)["groups"]] == [0, 8]
    assert "more than the 10 asked for" in caplog.text


def test_even_choices():
    for total in range(1, 40):
        places = [GroupPlace(0, "doc/0", 0, 1, line) for line in range(total)]
        for keep in range(2, 45):
            chosen = evenly(places, keep)
            assert chosen[0] == places[0] and chosen[-1] == places[-1]
            assert len(set(chosen)) == len(chosen) == min(total, keep)


def test_runs_without_samples_are_named(tmp_path, caplog):
    (tmp_path / "empty").mkdir()
    empty = InspectedRun("<b>", tmp_path / "empty", "grpo")
    with caplog.at_level(logging.WARNING):
        fragment = section([*runs_of(tmp_path, group(0)), empty])
    assert "Without samples: &lt;b&gt;." in fragment.html and "<b>" not in fragment.html
    assert "found no file" in caplog.text
    nothing = section([empty])
    assert "No samples. Without samples: &lt;b&gt;." in nothing.html and nothing.js == ""


def test_damage_is_not_hidden(tmp_path):
    (run,) = runs_of(tmp_path, [record(weights=[1.0])])
    with pytest.raises(InspectorError, match="line 1"):
        section([run])


def test_runs_of_older_versions_are_shown(tmp_path):
    (run,) = runs_of(tmp_path, [old_record()])
    (shown,) = payload(section([run]))["groups"]
    assert shown["prompt"] is None and "loss_terms" not in shown["completions"][0]


def test_hostile_texts_stay_texts(tmp_path):
    """Prompts, tokens, targets, values, names of examples: the page has the tags that it has without them."""

    def tags(texts):
        records = [
            record(
                example=f"{text}/1",
                prompt=text,
                text=CALL % json.dumps(text)[1:-1],
                target=text,
                tokens=[text] * 4,
                gold_calls=[{"name": text, "parameters": {text: text}}],
            )
            for text in texts
        ]
        (run,) = runs_of(tmp_path, records)
        fragment = section([InspectedRun(texts[0], run.folder, texts[0])])
        page = Page()
        page.feed(standalone_page(fragment, texts[0]))
        return page, payload(fragment)

    hostile = [text for text in HOSTILE.values() if "\ud800" not in text]
    page, content = tags(hostile)
    harmless, _ = tags(["a"] * len(hostile))
    assert page.tags == harmless.tags and page.comments == harmless.comments
    assert [one["example"] for one in content["groups"]] == [f"{text}/1" for text in hostile]
    assert content["runs"][0]["name"] == hostile[0]


def test_what_an_episode_observed_stays_text(tmp_path):
    """Results, names of tools, users' words and arguments come from outside."""

    def tags(texts):
        told = [episode(text, text, result=text) for text in texts]
        for one, text in zip(told, texts, strict=True):
            one["turns"][1]["observed"][0]["name"] = text
            one["turns"][0]["calls"] = [{"name": text, "arguments": {text: text}}]
            one["ending"], one["faults"] = text, {text: 1}
        records = [episode_record(step=step, episode=one, **{texts[step]: 1.0}) for step, one in enumerate(told)]
        fragment = section(runs_of(tmp_path, records))
        page = Page()
        page.feed(standalone_page(fragment))
        return page, payload(fragment)

    hostile = [text for text in HOSTILE.values() if "\ud800" not in text]
    page, content = tags(hostile)
    harmless, _ = tags([f"a{index}" for index in range(len(hostile))])
    assert page.tags == harmless.tags and page.comments == harmless.comments
    for one, text in zip(content["groups"], hostile, strict=True):
        speaker, said = one["completions"][0]["episode"]["turns"][1]["observed"][0]
        assert speaker == f"result of {text}" and "\n".join(content["lines"][index] for index in said) == text


def test_runs_of_episodes_and_of_answers_side_by_side(tmp_path):
    runs = runs_of(tmp_path, [episode_record(), episode_record(1)], [episode_record(step=5)], group(0))
    episodes, later, answers = payload(section(runs))["groups"]
    assert [len(one["completions"]) for one in (episodes, later, answers)] == [2, 1, 2]
    assert all("episode" in one for one in (*episodes["completions"], *later["completions"]))
    assert not any("episode" in one or "scores" in one for one in answers["completions"])
    assert answers["comparisons"] != [[]]


def test_values_that_are_no_text(tmp_path):
    """Half of a character, spelled out in a call, and an object without end."""
    deep = CALL.replace('"%s"', '{"a":' * 900 + "0" + "}" * 900)
    page = standalone_page(section(runs_of(tmp_path, [record(text=CALL % r"\ud800"), record(1, text=deep)])))
    page.encode("utf-8")
    assert r"\ud800" in page


def test_the_page_loads_nothing(tmp_path):
    page = standalone_page(section(runs_of(tmp_path, group(0))))
    assert not re.search(r"https?://|//cdn|@import|url\(|<link|innerHTML|eval\(|style=", page)
