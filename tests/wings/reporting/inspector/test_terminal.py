"""`python src/inspect_rollouts.py`: the same numbers in a terminal and a pipe, and no escape sequence of a model's."""

import io
import json
import re

import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from src.inspect_rollouts import inspect_rollouts
from src.wings.reporting.inspector.rollout_records import InspectorError, RolloutFile
from src.wings.reporting.inspector.terminal import show_group
from tests.conftest import ROOT
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


def config(*overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
        return compose("inspect.yaml", overrides=list(overrides))


def shown(folder, capsys, *overrides):
    inspect_rollouts(config(f"run={folder}", "width=200", *overrides))
    return capsys.readouterr().out


def printed(one, **options):
    """As in a terminal with colours."""
    file = io.StringIO()
    show_group(Console(file=file, force_terminal=True, color_system="standard", width=60), one, **options)
    return file.getvalue()


def test_the_last_group_in_a_pipe(tmp_path, capsys):
    folder = run_folder(tmp_path, [*group(0), *group(5, "doc/7")])
    out = shown(folder, capsys)
    assert "Step 5, doc/7" in out and "\x1b" not in out
    assert re.search(r"reasoning +Look\.\n", out) and "Completion 1  wrong values" in out
    assert re.search(r"≠ +city +\"Rome\" +\"Oslo\"", out)
    assert "parameter values 0 " in out and "scaled total 1.5 " in out and "advantage -1" in out
    assert "Weather in Oslo?" not in out and "Weather in Oslo?" in shown(folder, capsys, "prompt=true")


@pytest.mark.parametrize("numbers", ["weights", "entropies", "rollout_logprobs", "old_logprobs", "loss_terms"])
def test_numbers_are_those_of_the_file(numbers, tmp_path, capsys):
    out = shown(run_folder(tmp_path, group(0)), capsys, f"numbers={numbers}", "completions=[0]")
    found = [line.split()[1] for line in out.splitlines() if line.startswith(("  format", "  reasoning"))]
    assert list(map(float, found)) == record()[numbers]


def test_colours_with_numbers_underneath(tmp_path):
    file = RolloutFile(run_folder(tmp_path, group(0)))
    (one,) = file.read(file.places)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed(one, numbers="weights"))
    assert re.search(r"<think>  Look\. +</think> +<eos> *\n1\.25 +0\.5 +1\.25 +1 *\n", plain)
    coloured = printed(one)
    assert "\x1b[3;32m Look." in coloured  # italic and green: reasoning
    assert re.search(r"≠ +city +\"Rome\" +\"Oslo\"", re.sub(r"\x1b\[[0-9;]*m", "", coloured))


def test_choices(tmp_path, capsys):
    folder = run_folder(tmp_path, [*group(0), *group(0, "doc/1"), *group(5, "doc/2", size=3)])
    assert "Step 0, doc/1" in shown(folder, capsys, "step=first", "group=1")
    out = shown(folder, capsys, "step=5", "completions=[2,0]")
    assert out.index("Completion 2") < out.index("Completion 0") and "Completion 1" not in out
    assert "Completion" not in shown(folder, capsys, "kind=correct")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["step=3"], r"step: expected first, last or a rollout step with samples, found 3. .* has 0, 5"),
        (["group=2"], "group: expected 0 to 0 at rollout step 5, found 2"),
        (["completions=[7]"], r"completions: expected some of \[0, 1\], found \[7\]"),
        (["numbers=weight"], "numbers: expected null or one of .*'weights'"),
        (["kind=bad"], "kind: expected null or one of .*'wrong values'"),
    ],
)
def test_what_is_not_there_is_named(overrides, message, tmp_path):
    folder = run_folder(tmp_path, [*group(0), *group(5)])
    with pytest.raises(InspectorError, match=message):
        inspect_rollouts(config(f"run={folder}", *overrides))


def test_no_run_is_refused():
    with pytest.raises(InspectorError, match="run: expected a run folder, found nothing"):
        inspect_rollouts(config())


def test_runs_of_older_versions(tmp_path, capsys):
    out = shown(run_folder(tmp_path, [old_record()]), capsys, "numbers=loss_terms", "prompt=true")
    assert "loss_terms: not logged" in out and "Prompt\nnot logged" in out


def test_an_episode_turn_by_turn(tmp_path, capsys):
    records = [episode_record(), episode_record(1, episode=episode("<think>", "done", result="r" * 2500 + "\x1b[2J"))]
    out = shown(run_folder(tmp_path, records), capsys)
    first, second = out.split("Completion 1")
    lines = [line.rstrip() for line in first.splitlines()]
    assert "Target" not in out and "advantage 1" not in out.replace("advantage 1.5", "")
    assert "  user: Weather in Oslo?" in lines and "  result of sky: rain" in lines
    assert "  turn 2 (earned 0.5, advantage 1.5, 2 tokens): It rains." in lines
    assert lines[-2] == "  ended: done, rewritten histories 1, malformed 2, tool error 1"
    assert "state 1   answer 0.5   scaled total 0.75" in first
    assert "r" * 2000 + "… (504 more characters)" in second and "\x1b" not in out


def test_hostile_texts_reach_no_terminal(tmp_path):
    records = [
        record(prompt=text, text=CALL % json.dumps(text)[1:-1], target=text, tokens=[text] * 4, example=f"doc/{index}")
        for index, text in enumerate(HOSTILE.values())
        if "\ud800" not in text
    ]
    file = RolloutFile(run_folder(tmp_path, records))
    for one in file.read(file.places):
        out = printed(one, prompt=True, numbers="weights")
        assert re.fullmatch(
            r"(?:\x1b\[[0-9;]*m|[^\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff])*", out
        )
    assert "[bold red]x[/]" in printed(next(file.read([file.places[list(HOSTILE).index("markup") - 1]])))


def test_a_page_of_one_run(tmp_path):
    folder = run_folder(tmp_path / "mine", group(0))
    inspect_rollouts(config(f"run={folder}", f"html={tmp_path / 'out' / 'page.html'}"))
    page = (tmp_path / "out" / "page.html").read_text()
    assert "<title>Rollouts of mine</title>" in page and '"method":"rest"' in page
