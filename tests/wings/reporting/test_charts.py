"""Charts hold the runs' numbers, whatever the runs have."""

from pathlib import Path

from src.rollout.history import EPISODE_COUNTS
from src.wings.comparing.run_folders import RunRecord, read_runs
from src.wings.reporting import benchmark_charts, charts
from tests.wings.reporting.made_runs import REGIONS, step_metrics, write_run


def record(method: str = "rest", seed: int = 1, lift: float = 0.0, **more: object) -> RunRecord:
    steps = {index: step_metrics(index, lift) for index in range(3)}
    return RunRecord(f"{method}-{seed}", method, seed, steps, **more)  # type: ignore[arg-type]


def test_learning_curves_have_a_panel_for_each_metric_that_a_run_has() -> None:
    unlike = RunRecord("sft-1", "sft", 1, {0: {"train/nll": 1.5, "train/entropy": 0.5}})
    chart = charts.curves("learning_curves", [record(), unlike])
    panels = {panel.title: panel for panel in chart.panels}
    assert list(panels)[:3] == ["Reward", "Exact match of rollouts", "Policy entropy"]
    assert panels["Exact match of rollouts"].series == (
        charts.Series("rest-1", "rest", (0, 1, 2), (0.125, 0.25, 0.375)),
    )
    assert [series.run for series in panels["Policy entropy"].series] == ["rest-1", "sft-1"]
    assert panels["Negative log-likelihood"].series[0].y == (1.5,)


def test_episodes_have_a_panel_for_each_thing_that_happened() -> None:
    steps = {0: {"episode/turns": 2.0, "episode/ended_done": 1.0, "episode/ended_time": 0.0, "episode/timeout": 0.0}}
    steps[1] = {"episode/turns": 3.5, "episode/ended_done": 0.75, "episode/ended_time": 0.0, "episode/timeout": 0.25}
    chart = charts.curves("episodes", [RunRecord("rest-1", "rest", 1, steps), record()])
    assert [panel.title for panel in chart.panels] == ["Turns", "Ended: done", "Timeouts"]
    assert chart.panels[0].series == (charts.Series("rest-1", "rest", (0, 1), (2.0, 3.5)),)
    assert chart.panels[2].series[0].y == (0.0, 0.25)
    assert charts.curves("episodes", [record()]).panels == ()


def test_every_count_of_an_episode_has_a_panel() -> None:
    shown = {metric for metric, _, _ in charts.TEXTS["episodes"]["panels"]}
    assert shown == {f"episode/{name}" for name in EPISODE_COUNTS}


def test_regions_share_a_panel_for_one_method_and_have_their_own_for_several() -> None:
    alone = charts.curves("gradient_share", [record(seed=1), record(seed=2)])
    assert (alone.colours, [panel.title for panel in alone.panels]) == ("region", ["Gradient", "Tokens"])
    assert [series.group for series in alone.panels[0].series] == [r for r in REGIONS[:4] for _ in range(2)]
    several = charts.curves("gradient_share", [record("rest"), record("grpo")])
    titles = [panel.title for panel in several.panels]
    assert several.colours == "method" and titles[:2] == ["Gradient: format", "Gradient: tool name"]
    assert not any("response" in title for title in titles)  # no run has a token of it


def test_benchmarks_by_step_at_the_end_and_by_part(tmp_path: Path) -> None:
    write_run(tmp_path, "rest", 1)
    write_run(tmp_path, "rest", 2, lift=0.125)
    runs = read_runs([tmp_path])
    by_step, at_the_end = benchmark_charts.benchmark_bars(runs).panels
    assert by_step.categories == ("step 0", "step 4") and by_step.series[1].y == (0.25, 0.875)
    assert at_the_end.categories == ("overall", "follow up", "refusal", "single")  # no seconds, no counts
    assert at_the_end.series[0].y == (0.75, 0.375, 1.0, 0.75)
    assert at_the_end.series[0].start == (0.25, 0.125, 1.0, 0.25)
    (radar,) = benchmark_charts.benchmark_radar(runs).panels
    assert radar.categories == ("follow up", "refusal", "single") and radar.series[0].y == (0.375, 1.0, 0.75)


def test_without_benchmarks_the_bars_are_of_validation(tmp_path: Path) -> None:
    write_run(tmp_path, "rest", 1, benchmarks=False)
    runs = read_runs([tmp_path])
    (panel,) = benchmark_charts.benchmark_bars(runs).panels
    assert (panel.categories, panel.series[0].y, panel.series[0].start) == (("ask",), (0.75,), (0.25,))
    assert benchmark_charts.benchmark_radar(runs).panels == ()  # one kind makes no radar


def test_the_radar_has_the_paper_s_axes_and_rows_of_the_same_model() -> None:
    parts = ("non_live_ast", "multi_turn_long_context", "multi_turn_base", "multi_turn_miss_func", "live")
    scores = {f"bfcl/{part}": 0.5 for part in (*parts, "multi_turn_miss_param", "multi_turn", "java")}
    settings = {"policy.hub_id": "Qwen/Qwen3-8B"}
    run = record(settings=settings, benchmarks={4: scores})
    (panel,) = benchmark_charts.benchmark_radar([run]).panels
    assert panel.categories == ("NLST", "MTLC", "MTB", "MTMF", "LST", "MTMP")
    ours, *papers = panel.series
    assert ours.y == (0.5,) * 6
    assert [row.group for row in papers] == ["paper: Qwen3-8B (GRPO)", "paper: Qwen3-8B (Ours, ResT)"]
    assert papers[1].y[2] == 0.505  # Table 1, Base
    assert benchmark_charts.main_score([run], "bfcl") == "bfcl/multi_turn"


def test_a_chart_of_events_has_a_row_a_run_that_has_any(tmp_path: Path) -> None:
    for seed, alarm in ((1, None), (2, "found")):
        write_run(tmp_path, "rest", seed, alarm=alarm)
    (panel,) = charts.events(read_runs([tmp_path])).panels
    assert panel.categories == ("rest-2",)
    assert panel.series == (charts.Series("rest-2", "truncated", (1,), (0.0,), notes=("found",)),)
    assert panel.last == 4
