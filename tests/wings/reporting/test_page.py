"""The page: whole, escaped, closed to the network."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from src.report import report
from src.wings.comparing.run_folders import ComparisonError, read_runs
from src.wings.reporting import overview, page
from src.wings.reporting.inspector.section import PageSection
from tests.conftest import ROOT
from tests.wings.reporting.inspector.samples import episode_record
from tests.wings.reporting.made_runs import NASTY, write_run


def report_config(*overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
        config = compose("report.yaml", overrides=list(overrides))
    config.paths.root_dir = str(ROOT)
    return config


def make(folder: Path, *overrides: str) -> str:
    return report(report_config(f"runs=[{folder}]", "formats=[]", *overrides)).read_text(encoding="utf-8")


class Elements(HTMLParser):
    """What a page holds: (tag, attributes), texts of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def data(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="report-data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_a_page_and_figures_for_each_run_folder(tmp_path: Path) -> None:
    run = write_run(tmp_path, "rest", 1)
    file = report(report_config(f"runs={run}", "dpi=40"))
    assert file == run / "report/report.html"
    assert sorted(path.name for path in (run / "report/figures").iterdir()) == sorted(
        f"{key}.{suffix}"
        for key in "learning_curves region_entropy region_weights gradient_share benchmark_bars benchmark_radar".split()
        for suffix in ("png", "svg")
    )
    page = file.read_text(encoding="utf-8")
    panels = data(page)["learning_curves"]["panels"]
    assert panels[0]["series"] == [
        {"run": "rest-1", "group": "rest", "x": [0, 1, 2, 3], "y": [-1.0, 0.0, 1.0, 2.0], "start": []}
    ]
    svgs = [found for found in Elements(page).named("svg") if "aria-label" in found]
    assert [svg["aria-label"] for svg in svgs[:2]] == ["Reward", "Exact match of rollouts"]
    assert len(svgs) == sum(len(chart["panels"]) for chart in data(page).values())
    assert "val/exact_match rose from 0.250 to 0.750" in page
    assert "geheim" not in page and "/srv/ann" not in page and str(tmp_path) not in page


def test_no_text_of_a_run_can_be_markup(tmp_path: Path) -> None:
    write_run(tmp_path, "rest", 1, alarm=NASTY, algorithm__name=NASTY)
    write_run(tmp_path, "rest", 2)
    page = make(tmp_path)
    elements = Elements(page)
    assert elements.named("img") == [] and "<script>alert" not in page
    assert f"truncated: {html.escape(NASTY, quote=False)}</title>" in page
    assert not any(name.startswith("on") or name == "style" for _, found in elements.found for name in found)
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page


def test_the_page_needs_nothing_and_its_policy_allows_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, "rest", 1)
    page = make(tmp_path)
    elements = Elements(page)
    (policy,) = (meta["content"] for meta in elements.named("meta") if meta.get("http-equiv"))
    assert policy and policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy and "http" not in policy
    scripts = [tag for tag in elements.named("script") if not tag]
    assert len(re.findall("'sha256-", policy)) == len(scripts) + 1
    sources = [found.get(key) for _, found in elements.found for key in ("src", "href")]
    assert all(source is None or source.startswith("#") or source == "data:," for source in sources)
    ids = [found["id"] for _, found in elements.found if "id" in found]
    assert len(ids) == len(set(ids))
    headings = {found["aria-labelledby"] for tag, found in elements.found if tag == "section"}
    assert headings <= set(ids)


def test_sections_stand_in_the_page_with_their_styles_and_scripts(tmp_path: Path) -> None:
    write_run(tmp_path, "rest", 1)
    section = PageSection('<section id="more" aria-labelledby="h-more"></section>', "#more {}", "void 0;")
    text = page.render(read_runs([tmp_path]), {}, [section])
    assert section.html in text and "#more {}</style>" in text and "<script>void 0;</script>" in text


@pytest.mark.parametrize(
    "runs",
    [
        {"finished": False, "steps": 2},
        {"finished": False, "steps": 0, "benchmarks": False},
        {"benchmarks": False, "more": [{"event": "engine_fault", "rollout_step": 1, "error": None}]},
    ],
)
def test_runs_of_every_state_have_a_page(tmp_path: Path, runs: dict) -> None:
    write_run(tmp_path, "rest", 1, **runs)
    assert "rest, seed 1, on tiny" in make(tmp_path)
    write_run(tmp_path, "grpo", 2)
    assert "grpo, rest, seeds 1, 2, on tiny" in make(tmp_path)


BFCL = {"_target_": "src.environments.bfcl.environment.BfclEnvironment", "train_on_test": True}


def test_scores_on_test_cases_that_were_trained_on_are_worth_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, "rest", 1, data__train={"environment": BFCL})
    write_run(tmp_path, "rest", 2, environment=BFCL)  # composed, not trained on
    warning = (
        "rest-1 trained on BFCL's multi-turn test cases (environment.train_on_test): its BFCL scores are worth nothing."
    )
    assert html.unescape(make(tmp_path)).count(warning) == 2  # above the results and above the benchmarks
    trained, other = read_runs([tmp_path])
    assert overview.plain(warning) in overview.overview(trained)
    assert "worth nothing" not in overview.overview(other)


@pytest.mark.parametrize("changes", [{"train_on_test": False}, {"_target_": "my.environment.Cases"}])
def test_other_episodes_have_no_such_warning(changes: dict, tmp_path: Path) -> None:
    write_run(tmp_path, "rest", 1, data__train={"environment": BFCL | changes})
    assert "Trained on test cases" not in make(tmp_path)


def test_a_run_of_episodes_has_their_chart_and_their_turns(tmp_path: Path) -> None:
    numbers = {"episode/turns": 2.5, "episode/rewrites": 0.5, "episode/ended_cut": 0.25, "episode/malformed": 0.0}
    run = write_run(tmp_path, "rest", 1, more=[{"event": "rollout_step", "rollout_step": 3, **numbers}])
    (run / "rollouts.jsonl").write_text(json.dumps(episode_record()) + "\n")
    page = make(run)
    titles = [panel["title"] for panel in data(page)["episodes"]["panels"]]
    assert titles == ["Turns", "Rewritten histories", "Ended: answer cut"]
    assert '"observed":[["result of sky",' in page


def test_figures_of_an_earlier_report_go_when_they_have_no_numbers(tmp_path: Path) -> None:
    write_run(tmp_path, "rest", 1)
    stale = tmp_path / "report/figures/events.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    report(report_config(f"runs=[{tmp_path}]", "formats=[png]", "dpi=30", f"output={tmp_path}/report"))
    assert not stale.exists() and (stale.parent / "learning_curves.png").exists()


def test_what_can_not_be_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path, "rest", 1)
    for override, message in (
        ("formats=[gif]", r"formats: expected some of \['png', 'svg', 'pdf'\], found \['gif'\]"),
        ("runs=[]", r"runs: expected folders with runs, found none. Leave it out"),
        ("runs=[nowhere]", r"runs: expected a folder, 'nowhere' is none"),
    ):
        with pytest.raises(ComparisonError, match=message):
            report(report_config(f"runs=[{tmp_path}]", override))
