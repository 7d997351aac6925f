"""Talk to a policy. `python src/chat.py policy=tiny tools=synthetic`; `src/wings/chatting/run.py` is what happens."""

from __future__ import annotations

import sys

import hydra
import rootutils

rootutils.setup_root(__file__, indicator="pyproject.toml", pythonpath=True)

from omegaconf import DictConfig  # noqa: E402
from rich.console import Console  # noqa: E402

from src.config.checks import check_composed  # noqa: E402
from src.config.command_line import entry_point, quick_imports  # noqa: E402


@hydra.main(version_base="1.3", config_path="../configs", config_name="chat.yaml")
def main(config: DictConfig) -> None:
    """Command line: a conversation with whoever is at the terminal, or with a script on stdin."""
    check_composed(config, "chat.yaml")
    with quick_imports():
        from src.wings.chatting.run import chat, typed_lines

    console = Console(highlight=False)
    typed = sys.stdin.isatty() and console.is_terminal
    chat(config, typed_lines(console) if typed else sys.stdin, console, typed=typed)


if __name__ == "__main__":
    with entry_point("chat.yaml"):
        main()
