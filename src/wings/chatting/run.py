"""A conversation: resolve → load → talk, calls run by real tools."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from src.config.checks import check_composed, made
from src.environments.protocol import World
from src.protocol.dialogue import Message
from src.rollout.native.engine import NativeEngine
from src.wings.chatting.conversation import Chat
from src.wings.chatting.episode_world import EpisodeWorld
from src.wings.chatting.terminal import Screen
from src.wings.evaluation.answering import GenerationSettings, find_model, start_engine

_HELP = "/tools: what can be called · /reset: start anew · /quit: end"


def chat(config: DictConfig, lines: Iterable[str], console: Console, *, typed: bool = False) -> Chat:
    """Hold one conversation and return it.

    Args:
        config: composed from `chat.yaml`.
        lines: what the user says, a turn a line; `/tools`, `/reset`, `/help` and `/quit` are commands.
        console: where the conversation is printed.
        typed: the user has seen the lines already, as they typed them.

    Raises:
        ConfigError: the config cannot run.
    """
    check_composed(config, "chat.yaml")
    L.seed_everything(config.seed, workers=True, verbose=False)
    settings: GenerationSettings = instantiate(config.generation)
    device, source = find_model(config)
    with ExitStack() as stack:
        world, opening = _world(config)
        stack.callback(world.close)
        generate = start_engine(config, settings, device, source, instantiate(config.sampling))
        stack.callback(generate.engine.close)
        conversation = Chat(generate, generate.renderer, world, config.max_steps, opening)
        screen = Screen(console, generate.table, generate.renderer.response_prefix, generate.renderer.format)
        if isinstance(generate.engine, NativeEngine):
            generate.engine.watch = screen.watch  # other engines answer a step at a time
        about = f"{source.name} in the layout {config.prompt.layout} with {len(world.tools)} tools."
        screen.note(f"{about} {_HELP}\nFor example: {world.hint}")
        for line in lines:
            text = line.strip()
            if text and not typed:
                screen.echo(text)
            if text == "/quit":
                break
            _take(text, conversation, world, screen)
    return conversation


def _world(config: DictConfig) -> tuple[World, tuple[Message, ...]]:
    """The tools, and what stands in front of the user's words.

    Raises:
        ConfigError: a world that the config does not describe.
        EnvironmentFaultError: it does not start.
    """
    if config.environment is None:
        return made(config.tools, "tools"), ()
    world = EpisodeWorld(made(config.environment, "environment"), config.task.split, config.task.index)
    return world, world.opening


def _take(text: str, conversation: Chat, world: World, screen: Screen) -> None:
    """A command or a turn."""
    if text == "/tools":
        screen.tools(world.tools)
    elif text == "/reset":
        conversation.reset()
        screen.note("A new conversation.")
    elif text.startswith("/"):
        screen.note(_HELP)
    elif text:
        try:
            screen.show(conversation.say(text))
        except KeyboardInterrupt:
            screen.note("Interrupted. /quit ends the conversation.")


def typed_lines(console: Console) -> Iterator[str]:
    """What a user types, until Ctrl-D or Ctrl-C."""
    import readline  # noqa: F401 - gives `input` a history and keys to move in the line

    while True:
        try:
            yield console.input("[dim]you[/]       ")
        except (EOFError, KeyboardInterrupt):
            return
