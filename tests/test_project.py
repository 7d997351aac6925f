"""The project's own promises: versions in one place, a Makefile that documents itself, portable sources."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def normalised(requirement):
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-").replace(".", "-")


def test_every_direct_dependency_is_pinned_once():
    project = PYPROJECT["project"]
    groups = [
        project["dependencies"],
        *project["optional-dependencies"].values(),
        *PYPROJECT["dependency-groups"].values(),
    ]
    direct = [requirement for group in groups for requirement in group if isinstance(requirement, str)]
    assert [r for r in direct if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][^*,; ]*", r)] == []
    names = [normalised(r) for r in direct]
    assert len(names) == len(set(names))
    constraints = [line for line in (ROOT / ".constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert set(names) & {normalised(c) for c in constraints} == set()
    assert [c for c in constraints if "+" in c or "@" in c] == []  # no build of one machine, no path


def test_environment_takes_its_versions_from_pyproject():
    dependencies = yaml.safe_load((ROOT / "environment.yaml").read_text())["dependencies"]
    (from_pip,) = [d["pip"] for d in dependencies if isinstance(d, dict)]
    constraints, editable = from_pip
    assert constraints == "-c .constraints.txt"
    extras = re.fullmatch(r"-e \.\[(.+)\]", editable)
    assert extras and set(extras[1].split(",")) == {*PYPROJECT["project"]["optional-dependencies"]} - {"cpu-vllm"}
    python = PYPROJECT["project"]["requires-python"].removeprefix("==").removesuffix(".*")
    assert [d for d in dependencies if isinstance(d, str)] == [f"python={python}", "pip>=25.1"]


def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "TERM": "dumb"}
    shown = subprocess.run(["make"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    listed = {line.split()[0]: line.split(maxsplit=1)[1:] for line in shown.splitlines()}
    assert set(listed) == set(phony.split())
    assert all(listed.values())
    assert {"setup", "train", "test", "test-slow", "sweep", "format", "lint", "bench", "clean"} <= set(listed)


def test_ci_runs_without_help():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_sources_name_no_machine():
    """No string in them is a path of one. Prints, bare excepts and the like are ruff's: see pyproject.toml."""
    machine = re.compile(r"(^|[\s\"'=])(/(home|root|Users|mnt|work|workspace|tmp|opt|data)/|[A-Z]:\\)")
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value!r}"
        for path in sorted((ROOT / "src").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and machine.search(node.value)
    ]
    assert found == []


def test_ruff_forbids_prints_and_blind_excepts():
    assert {"E", "BLE", "T20"} <= set(PYPROJECT["tool"]["ruff"]["lint"]["select"])


def test_configs_name_no_machine():
    machine = re.compile(r"[\s:\"'](/(home|root|Users|mnt|work|workspace|tmp|opt)/)")
    assert [p.name for p in (ROOT / "configs").rglob("*.yaml") if machine.search(p.read_text())] == []


def test_top_level_holds_what_the_readme_maps():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout: the tracked files are unknown")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    allowed = {"src", "configs", "logs", "tests", "docs", "environment.yaml", "Makefile", "README.md", "pyproject.toml"}
    assert {name for name in top if not name.startswith(".")} <= allowed | {"LICENSE"}
