"""`make compare`: the sweep's shared settings, and the report over run folders written by hand."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from src.compare import compare_runs
from src.wings.comparing.run_folders import ComparisonError, find_runs
from tests.conftest import ROOT

REGIONS = ("format", "tool_name", "tool_parameters", "reasoning", "response", "other")


@cache
def composed(name: str, *overrides: str) -> DictConfig:
    """With Hydra's own settings; not to be changed."""
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
        return compose(name, overrides=list(overrides), return_hydra_config=True)


def compare_config(*overrides: str) -> DictConfig:
    return OmegaConf.merge(composed("compare.yaml"), OmegaConf.from_dotlist(list(overrides)))


Curve = tuple[float, ...]


def write_run(
    folder: Path, method: str, seed: int, curve: Curve, final: float, finished: bool = True, **changes: object
) -> Path:
    """A run folder as training leaves it; `changes` are to its config, dots as double underscores."""
    run = folder / f"{method}-{seed}"
    (run / ".hydra").mkdir(parents=True)
    config = OmegaConf.create(
        {
            "seed": seed,
            "algorithm": {"name": method, "loss": {"aggregation": "sequence" if method == "grpo" else "published"}},
            "updates": {"rollout_steps": len(curve), "max_row_tokens": 16384},
            "sampling": {"n": 8, "max_new_tokens": 112},
            "data": {"train": {"num_val": 1000, "seed": seed}, "prompts_per_step": 16, "seed": seed},
            "policy": {"path": str(folder / "project/policy")},
            "paths": {"root_dir": str(folder / "project"), "output_dir": str(run)},
        }
    )
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    OmegaConf.save(config, run / "config.yaml")
    OmegaConf.save(config, run / ".hydra/config.yaml")

    def validation(step: int, match: float) -> dict[str, object]:
        values = {"val/exact_match": match, "val/correctness": match, "val/reward": 6 * match - 3}
        return {"event": "validation", "rollout_step": step, **values}

    shares = {f"{kind}/{region}": 1 / 6 for kind in ("token_share", "gradient_share") for region in REGIONS}
    more = {"train/entropy": 0.5, "response/tokens": 40.0, "group/zero_variance": 0.25, "group/reward_std": 1.5}
    events = [
        validation(0, 0.5),
        *(
            {"event": "rollout_step", "rollout_step": index, "reward/exact_match": value, "reward/correctness": value}
            | shares
            | more
            for index, value in enumerate(curve)
        ),
        validation(len(curve), final),
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if finished:
        (run / "summary.json").write_text("{}")
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two seeds of GRPO, one of ResT."""
    write_run(tmp_path, "grpo", 1, (0.5, 0.5, 0.75), 0.75)
    write_run(tmp_path, "grpo", 2, (0.5, 0.5, 0.5), 0.5)
    write_run(tmp_path, "rest", 1, (0.5, 0.75, 1.0), 0.875)
    return tmp_path


def test_the_report(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    grpo, rest = compare_runs(compare_config(f"runs=[{folder}]", f"output={output}", "comparison.window=2"))
    assert grpo.seeds == (1, 2) and rest.differences["val/exact_match"].by_seed == {1: 0.125}

    text = (output / "comparison.md").read_text()
    # trailing means of rest: 0.625, 0.875; of grpo: at most 0.625
    grpo_line, rest_line = (" ".join(line.split()) for line in text.splitlines()[4:6])
    assert grpo_line == "| grpo | 2 | 0.500 ± 0.000 | 0.625 ± 0.125 | – | – (0 of 2) | 0.542 ± 0.042 | – |"
    assert rest_line == "| rest | 1 | 0.500 | 0.875 | +0.125 | 3.0 (1 of 1) | 0.750 | +0.167 |"
    assert "- grpo: `algorithm.loss.aggregation=sequence`\n- rest: `algorithm.loss.aggregation=published`" in text
    assert "updates.rollout_steps: 3\n" in text and "policy.path: <project>/policy\n" in text
    assert "max_row_tokens" not in text and "seed:" not in text
    assert "| rest | 0.875 | – |" in " ".join(text.split())  # no seed 2
    assert "0.167 (0.167)" in text and "unfinished" not in text
    content = json.loads((output / "comparison.json").read_text())
    assert content["methods"][1]["differences"]["val/exact_match"] == {
        "mean": 0.125,
        "interval": None,
        "by_seed": {"1": 0.125},
    }
    assert [entry["seed"] for entry in content["runs"]] == [1, 2, 1]
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_folders_of_several_sweeps_are_one_comparison(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "grpo", 1, (0.5, 0.5, 0.5), 0.5)
    write_run(tmp_path / "b/2026", "rest", 1, (0.5, 0.5, 0.5), 0.5)  # another checkout: its own project folder
    rows = compare_runs(compare_config(f"runs=[{tmp_path}/a,{tmp_path}/b,{tmp_path}/a/grpo-1]"))
    assert [row.method for row in rows] == ["grpo", "rest"]
    assert (tmp_path / "a/comparison.md").is_file() and not (tmp_path / "b/comparison.md").exists()


def test_unfinished_runs_are_named_or_left_out_on_request(folder: Path) -> None:
    write_run(folder, "rest", 2, (0.5, 0.5, 0.5), 0.5, finished=False)
    died = folder / "rest-3/.hydra"  # before it saved its own config
    died.mkdir(parents=True)
    (died / "config.yaml").write_text("seed: 3\n")
    assert [path.name for path in find_runs([folder])[1]] == ["rest-2", "rest-3"]
    with pytest.raises(ComparisonError, match=r"unfinished, without summary\.json: '.*rest-2', '.*rest-3'\. Wait"):
        compare_runs(compare_config(f"runs=[{folder}]"))
    rows = compare_runs(compare_config(f"runs=[{folder}]", "allow_unfinished=true"))
    assert rows[1].seeds == (1,)
    assert "**Left out, unfinished: rest-2, rest-3.**" in (folder / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling__n": 4}, r"sampling\.n: expected the same for all runs, found 8 in grpo-1 and 4 in rest-5"),
        ({"data__train__num_val": 300}, r"data\.train\.num_val: .* found 1000 in grpo-1 and 300 in rest-5"),
        ({"data__prompts_per_step": 8}, r"data\.prompts_per_step: "),
        ({"policy__path": "other"}, r"policy\.path: .* '<project>/policy' in grpo-1 and 'other' in rest-5"),
        ({"warm_start__epochs": 1}, r"warm_start\.epochs: .* found None in grpo-1 and 1 in rest-5"),
        ({"algorithm__resample_rounds": 3}, r"algorithm\.resample_rounds: expected the same for all runs"),
        (
            {"algorithm__loss__aggregation": "sequence"},
            r"aggregation: expected the same for all runs of rest, found 'published' in rest-1 and 'sequence'",
        ),
        ({"algorithm__name": None}, r"rest-5/config\.yaml: expected algorithm\.name and seed, found None and 5"),
        ({"updates__rollout_steps": 4}, r"expected the rollout steps 0 to 3 once each, found \[0, 1, 2\]"),
    ],
)
def test_runs_that_differ_in_more_than_the_method_are_refused(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    write_run(folder, "rest", 5, (0.5, 0.5, 0.5), 0.5, **changes)
    with pytest.raises(ComparisonError, match=message):
        compare_runs(compare_config(f"runs=[{folder}]"))


def test_how_a_run_is_executed_may_differ(folder: Path) -> None:
    changes = {"updates__max_row_tokens": 4096, "data__val_batch_size": 1, "trainer__accelerator": "gpu"}
    write_run(folder, "rest", 2, (0.5, 0.5, 0.5), 0.5, **changes)
    assert compare_runs(compare_config(f"runs=[{folder}]"))[1].seeds == (1, 2)


def test_another_number_of_rollout_steps_is_refused(folder: Path) -> None:
    write_run(folder, "rest", 2, (0.5, 0.5, 0.5, 0.5), 0.5)
    with pytest.raises(ComparisonError, match=r"updates\.rollout_steps: .* found 3 in grpo-1 and 4 in rest-2"):
        compare_runs(compare_config(f"runs=[{folder}]"))


def test_damaged_metrics_are_named_by_line(folder: Path) -> None:
    path = folder / "rest-1/metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"event": "valid')
    with pytest.raises(ComparisonError, match=r"metrics\.jsonl, line 6: expected a JSON object with event"):
        compare_runs(compare_config(f"runs=[{folder}]"))
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(ComparisonError, match=r"expected a validation at rollout step 3, found one at \[0\]"):
        compare_runs(compare_config(f"runs=[{folder}]"))


def test_a_run_without_a_first_validation_has_no_start(folder: Path) -> None:
    path = folder / "rest-1/metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    grpo, rest = compare_runs(compare_config(f"runs=[{folder}]"))
    assert grpo.start and not rest.start and rest.final
    assert re.search(r"\| rest +\| +1 \| +– \|", (folder / "comparison.md").read_text())


def test_folders_without_runs_are_refused(tmp_path: Path) -> None:
    for overrides, message in (
        ([], "runs: expected folders with runs, found none"),
        ([f"runs=[{tmp_path}]"], r"runs: expected run folders in '.*', found none"),
        ([f"runs=[{tmp_path}/no]"], r"runs: expected a folder, '.*/no' is none"),
    ):
        with pytest.raises(ComparisonError, match=message):
            compare_runs(compare_config(*overrides))


def test_the_sweep_shares_budget_and_start() -> None:
    config = composed("train.yaml", "hparams_search=compare", "updates.rollout_steps=7", "seed=3")
    assert config.trainer.val_check_interval == 7  # the command line wins, and validation follows
    assert config.data.train.num_val >= 1000 and config.data.val_splits == ["val"]
    assert not config.benchmark and config.callbacks.checkpoint is None and config.callbacks.progress_bar is None
    assert config.callbacks.checkpoint is None and not config.trainer.enable_progress_bar
    assert list(config.logger) == ["csv"]
    assert config.hydra.mode.name == "MULTIRUN"
    assert config.hydra.sweeper.params.seed == "1,2,3,4,5"
    methods = config.hydra.sweeper.params.algorithm.split(",")
    assert {"grpo", "dr_grpo", "rest", "rest_auto", "rest_variance_optimal"} <= set(methods)
    assert len(methods) == len(set(methods)) == 8
    assert OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"].endswith("-${seed}")


@pytest.mark.parametrize("key", ["data", "policy", "prompt", "sampling", "updates", "warm_start", "optimizer"])
def test_methods_of_the_sweep_differ_in_nothing_but_the_method(key: str) -> None:
    methods = composed("train.yaml", "hparams_search=compare").hydra.sweeper.params.algorithm.split(",")
    configs = [composed("train.yaml", "hparams_search=compare", f"algorithm={method}") for method in methods]
    assert [config.algorithm.name for config in configs] == methods
    assert all(config[key] == configs[0][key] for config in configs)


def test_the_sweep_keeps_what_the_experiment_decides() -> None:
    tiny, ours = composed("train.yaml", "experiment=tiny"), composed("train.yaml", "hparams_search=compare")
    for section in ("sampling", "optimizer", "policy", "prompt", "algorithm", "reward"):
        assert ours[section] == tiny[section], section
    assert ours.updates == {**tiny.updates, "rollout_steps": 20}
