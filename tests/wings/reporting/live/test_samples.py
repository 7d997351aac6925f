"""Samples as tables: completions a row each, episodes a row a turn."""

import html

from tensorboard.plugin_util import markdown_to_safe_html

from src.wings.reporting import overview
from src.wings.reporting.inspector.rollout_records import logged_group
from src.wings.reporting.live.samples import COLUMNS, sample_table
from tests.wings.reporting.inspector.samples import episode, episode_record, group


def test_answers_have_a_row_each():
    table = sample_table([logged_group(group(3))])
    assert (table.name, table.columns, len(table.rows)) == ("samples/completions", COLUMNS, 2)
    assert sample_table([]).rows == ()


def test_episodes_have_a_row_a_turn():
    records = [episode_record(step=3), episode_record(1, step=3, exact_match=1.0)]
    table = sample_table([logged_group(records)])
    assert table.name == "samples/episodes" and len(set(table.columns)) == len(table.columns)
    first, second, third, _ = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert (first["completion"], first["turn"], second["turn"], third["completion"]) == (0, 1, 2, 1)
    assert first["prompt"] == "system\nWeather in Oslo?" and second["prompt"] is None
    assert (first["observed"], second["observed"]) == ("user: Weather in Oslo?", "result of sky: rain")
    assert (first["calls"], second["calls"]) == ('{"name": "sky", "parameters": {"city": "Oslo"}}', "")
    assert second["regions"] == "response: Rain.\nformat: <eos>"
    assert [(one["earned"], one["advantage"]) for one in (first, second)] == [(0.25, -0.5), (0.5, 1.5)]
    assert (second["failure"], third["failure"]) == ("task not done", "correct")
    whole = ("ending", "turns", "rewrites", "faults", "reward", "reward/state", "reward/answer", "reward/format")
    assert [second[key] for key in whole] == ["done", 2, 1, "malformed 2, tool_error 1", 0.75, 1.0, 0.5, 1.0]
    assert "reward/name" not in table.columns  # an episode has no such part


def test_what_was_observed_is_cut_and_no_markup():
    result = "<img src=x>|" + "r" * 3000
    table = sample_table([logged_group([episode_record(episode=episode(result=result))])])
    observed = table.rows[1][table.columns.index("observed")]
    assert observed == f"result of sky: {result[:2000]}… (1,012 more characters)"
    page = markdown_to_safe_html(overview.table(table.columns, table.rows))
    assert page.count("<tr>") == 3 and "<img" not in page and "<img src=x>|rrr" in html.unescape(page)
