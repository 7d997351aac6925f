"""Whether a documented command could be run as it stands: nothing is trained, loaded, downloaded or written.

Programs of this project are composed by Hydra and pass the project's own checks of a config; `make` says what a target
would run, and that is looked at in its place; of modules with options the source is searched for them.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from src.config.checks import check_composed
from src.config.rules import check_config
from src.errors import ConfigError
from src.wings.evaluation.resolving import resolve_model
from tests.conftest import ROOT
from tests.docs.pages import programs

TIME = "2026-11-22_12-45-10"
PLACEHOLDERS = {"<time>": TIME, "seed=S": "seed=1", "algorithm=NAME": "algorithm=rest", "=…": "=RUN", "[…]": "[RUN]"}
"""What a reader fills in. A … that is a word of its own stands for the arguments of the command before."""
RUNS = (f"logs/train/runs/{TIME}", "RUN")
"""Where the commands expect a run folder."""
ALL_DEVICES = 8
"""Of the machine that commands are checked for: the paper's."""
LAUNCHERS = ("sbatch", "docs/launch/torchrun.sh")
"""What follows their script, or them, goes to src/train.py."""

NOT_RUN = {
    r"(source|export|printf|less|grep) ?": "the shell's own: says nothing of this project",
    r"(conda|pip|apt-get) |\S*python -m pip ": "installs packages, over a network",
    r"(python3\.11 -m venv )?\.venv-bfcl\b": "bfcl-eval's own environment; docs/evaluation.md says when it was run",
    r"vllm serve ": "needs a GPU and weights, and serves until it is stopped",
    r"\S*tensorboard |python -m http\.server": "serves until it is stopped",
    r"\S*wandb sync ": "sends a run to W&B",
    r"python -m verl\.": "another project's",
}
"""Commands that no test looks at, and why not. Programs of ours among their arguments are looked at all the same."""


class CommandError(ValueError):
    """A documented command that cannot be run as it stands."""


def fault(words: Sequence[str], configs: Path | None = None) -> str | None:
    """What is wrong with a command, if anything.

    Args:
        words: of the command, program first. Paths are taken from the working folder, which has `RUNS` and `FOLDER`.
        configs: of a copy of the project that a page has added files to. Then configs are composed and no more: code
            that comes with the page cannot be imported here, and `test_examples.py` runs these.
    """
    try:
        _check(words, configs)
    except (CommandError, ConfigError, HydraException) as error:
        return str(error)
    return None


def _check(words: Sequence[str], configs: Path | None) -> None:
    text = " ".join(words)
    python = re.fullmatch(r"(\S*/)?python", words[0]) is not None
    ours = python and re.match(r"(src|tests)(\.|$)", words[words.index("-m") + 1]) if "-m" in words[:2] else None
    left_out = any(re.match(pattern, text) for pattern in NOT_RUN)
    if ours:
        _check_module(words[2], () if left_out else words[3:])
    elif left_out:
        return
    elif python and len(words) > 1 and words[1].startswith("src/"):
        check_program(words[1], tuple(words[2:]), configs)
    elif words[0] == "make":
        _check_target(words[1:], configs)
    elif words[0] in LAUNCHERS:
        script = next((index for index, word in enumerate(words) if word.startswith("docs/launch/")), 0)
        if not (ROOT / words[script]).is_file():
            raise CommandError(f"expected a script in docs/launch, found '{words[script]}'.")
        check_program("src/train.py", tuple(words[script + 1 :]), configs)
    elif words[0] == "pytest":
        for path in (word for word in words[1:] if "/" in word):
            if not (ROOT / path).exists():
                raise CommandError(f"no such file: '{path}'.")
    else:
        raise CommandError(
            "no test looks at this command. If none can, say why in NOT_RUN of tests/docs/command_checks.py."
        )


@cache
def check_program(script: str, arguments: tuple[str, ...], configs: Path | None = None) -> None:
    """Compose what a program would, and hold the project's checks against it.

    Raises:
        CommandError: there is no such program.
        HydraException: its arguments name what is not there.
        ConfigError: the config cannot run.
    """
    file = ROOT / script
    if not file.is_file():
        raise CommandError(f"no such file: '{script}'.")
    found = re.search(r'config_name="([\w.]+)"', file.read_text(encoding="utf-8"))
    if found is None:
        raise CommandError(f"{script}: expected a program with a config_name.")
    primary = found[1]
    words = [_filled_in(word) for word in arguments if word != "…"]
    parsed = get_args_parser().parse_args(words)
    with initialize_config_dir(version_base="1.3", config_dir=str(configs or ROOT / "configs")):
        given = _one_each(parsed.overrides)
        config = compose(primary, list(given.values()), return_hydra_config=parsed.multirun)
        if parsed.multirun and (searched := _searched(config.hydra.sweeper)):
            config = compose(primary, list((searched | given).values()))
    if configs is None:
        _hold_checks(config, primary, whole="…" not in arguments)


def _hold_checks(config: DictConfig, primary: str, *, whole: bool) -> None:
    with open_dict(config):
        config.pop("hydra", None)
        config.paths.output_dir = "output"
        if primary == "train.yaml":
            config.dry_run = True  # leaves out what only the machine of the run has: devices, engines, corpora
            if config.trainer.devices == -1:
                config.trainer.devices = ALL_DEVICES
    if primary == "train.yaml":
        check_config(config)
        return
    check_composed(config, primary)
    if whole and "model" in config:
        resolve_model(config)


def _filled_in(word: str) -> str:
    for placeholder, value in PLACEHOLDERS.items():
        word = word.replace(placeholder, value)
    return word


def _one_each(lines: Sequence[str]) -> dict[str, str]:
    """Overrides by key, of a sweep its first value."""
    parsed = OverridesParser.create().parse_overrides(overrides=list(lines))
    return {str(one.key_or_group): _first(one) for one in parsed}


def _first(override: Override) -> str:
    if not override.is_sweep_override():
        return str(override.input_line)
    value = override.value()
    first = value.start if isinstance(value, IntervalSweep) else next(override.sweep_string_iterator())
    return f"{override.get_key_element()}={first}"


def _searched(sweeper: DictConfig) -> dict[str, str]:
    """The same of what a config searches; null takes a parameter out."""
    params = OmegaConf.to_container(sweeper.get("params") or OmegaConf.create())
    assert isinstance(params, dict)
    return _one_each([f"{key}={value}" for key, value in params.items() if value is not None])


def _check_target(arguments: Sequence[str], configs: Path | None) -> None:
    """`make` says what it would run; of that, all that is ours is looked at."""
    words = ["make", "--dry-run", "--no-print-directory", *map(_filled_in, arguments)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    run = subprocess.run(words, cwd=ROOT, env=environment, text=True, capture_output=True)
    if run.returncode:
        raise CommandError(run.stderr.strip())
    for line in re.split(r"(?<!\\)\n", run.stdout):
        if re.search(r"python (src/|-m (src|tests)\b)", line):
            for program in programs(line.replace("\\\n", " ")):
                if re.match(r"\S*python (src/|-m (src|tests)\b)", " ".join(program)):
                    _check(program, configs)


def _check_module(module: str, arguments: Sequence[str]) -> None:
    place = ROOT / module.replace(".", "/")
    files = sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    if not (place / "__main__.py" if place.is_dir() else files[0]).is_file():
        raise CommandError(f"no such module: '{module}'.")
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    for option in (word.partition("=")[0] for word in arguments if word.startswith("--")):
        if f'"{option}"' not in source:
            raise CommandError(f"{module} has no option {option}.")
