"""From a config and a loaded model to answers: device, prompt, limits that follow from the model, the engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress, count, islice, repeat

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor
from transformers import PreTrainedModel

from src.config.checks import cache_file
from src.config.guard import check_engine, find_ways
from src.data.rendering import PromptRenderer
from src.data.templates.published import read_published
from src.environments.conversation import Answer
from src.environments.protocol import Environment, Task
from src.environments.tasks import task_example
from src.errors import ConfigError, check_fields
from src.models.loading.lora import merged_named_tensors
from src.models.structure import positions_of
from src.protocol.dialogue import ChatPrompt, Message, OpenPrompt, TurnExample
from src.protocol.output_format import Reading
from src.protocol.regions import read_completion
from src.protocol.token_bytes import TokenBytes
from src.rollout.engine import EngineSource, RolloutEngine, SamplingParams, shortest
from src.rollout.episodes import EpisodeLimits, Player
from src.rollout.history import PlayedEpisode
from src.wings.evaluation.resolving import ModelSource, load_source, resolve_model

_LONGEST = 2048
_SHARE = 8


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How long answers may be, and how many are made at once.

    Attributes:
        max_new_tokens: longest answer in tokens; None: an eighth of the context, at most 2,048.
        context: most tokens of prompt and answer together; None: the model's positions.
        batch_size: prompts that go to the engine at once; answers in the making are lost if a run is interrupted.
    """

    max_new_tokens: int | None = None
    context: int | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        rules = (
            ("max_new_tokens", self.max_new_tokens is None or self.max_new_tokens >= 1, "null or at least 1"),
            ("context", self.context is None or self.context >= 2, "null or at least 2"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
        )
        check_fields("generation", self, rules)

    def limits(self, model: PreTrainedModel) -> tuple[int, int | None]:
        """(longest answer, context) for a model.

        Raises:
            ValueError: a context beyond the model's positions.
        """
        positions = positions_of(model.config)
        if self.context is not None and positions is not None and self.context > positions:
            raise ConfigError(f"generation.context: expected at most the model's {positions}, found {self.context}.")
        context = positions if self.context is None else self.context
        if self.max_new_tokens is not None:
            return self.max_new_tokens, context
        return (_LONGEST if context is None else max(1, min(_LONGEST, context // _SHARE))), context


def choose_device(wanted: str) -> torch.device:
    """The device that the key `device` means.

    Raises:
        ConfigError: there is no such device.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device: expected auto, cpu or cuda, found '{wanted}'.")
    present = torch.cuda.is_available()
    if wanted == "cuda" and not present:
        raise ConfigError("device=cuda: PyTorch finds no CUDA device. Set device=cpu, or install a CUDA build.")
    return torch.device("cuda" if present and wanted != "cpu" else "cpu")


def find_model(config: DictConfig) -> tuple[torch.device, ModelSource]:
    """Device and model of a config; what its `prompt` leaves to the model is filled in.

    Raises:
        ConfigError: see `choose_device` and `resolve_model`.
    """
    device = choose_device(config.device)
    source = resolve_model(config)
    usual: dict[str, object] = {"layout": "published", "chat_template_kwargs": {}}
    usual |= dict.fromkeys(("format", "fold_system", "date"))
    with open_dict(config.prompt):
        for key, value in usual.items():
            if config.prompt[key] is None:
                config.prompt[key] = source.prompt.get(key) or value
    return device, source


class EngineGenerate:
    """See `Candidate`: a rollout engine answers.

    Args:
        engine: samples; asked for one completion a prompt.
        renderer: chat messages to prompt ids.
        table: the tokenizer's tokens as bytes.
        stop_token_ids: end-of-turn tokens.
        max_new_tokens: longest answer.
        context: most tokens of prompt and answer together; None: as many as the engine takes, which is the limit in
            any case. An answer is cut where it ends; a prompt that leaves no room is not answered.
        batch_size: prompts that go to the engine at once, and that are lost if the run is interrupted.
        sampling: temperature, top_p and top_k; None: greedy, which draws no random number.
        seed: of the first answer; each further one has the next.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        renderer: PromptRenderer,
        table: TokenBytes,
        stop_token_ids: tuple[int, ...],
        *,
        max_new_tokens: int,
        context: int | None,
        batch_size: int = 256,
        sampling: SamplingParams | None = None,
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"generation.batch_size: expected at least 1, found {batch_size}.")
        self.engine = engine
        self.renderer = renderer
        self.table = table
        self.params = replace(
            sampling or SamplingParams(temperature=0.0),
            n=1,
            max_new_tokens=max_new_tokens,
            stop_token_ids=stop_token_ids,
        )
        self.context = shortest(context, engine.context)
        self._batch_size = batch_size
        self._seeds: Iterator[int] = repeat(0) if sampling is None else count(seed)

    def __call__(self, prompts: Sequence[ChatPrompt | OpenPrompt]) -> Iterator[tuple[int, Answer]]:
        """See `Generate`."""
        if self.renderer.layout == "native":
            prompts = [read_published(prompt) if isinstance(prompt, ChatPrompt) else prompt for prompt in prompts]
        ids = [self._encode(prompt) for prompt in prompts]
        rooms = [self._room(prompt) for prompt in ids]
        for index, room in enumerate(rooms):
            if room == 0:
                yield index, replace(Answer.of(self.renderer.response_prefix), finish="context")
        fitting = [index for index, room in enumerate(rooms) if room > 0]
        # one call takes one limit: those with room for a whole answer go together, the few others by their room
        fitting.sort(key=lambda index: (rooms[index], -len(ids[index])))
        for batch in self._batches(fitting, rooms):
            params = replace(self.params, max_new_tokens=rooms[batch[0]])
            seeds = list(islice(self._seeds, len(batch)))
            completions = self.engine.generate([ids[index] for index in batch], params, seeds)
            for index, (completion,) in zip(batch, completions, strict=True):
                yield index, self._read(prompts[index], completion.token_ids, completion.finish_reason)

    def play(
        self, environment: Environment, tasks: Sequence[Task], limits: EpisodeLimits
    ) -> Iterator[tuple[int, PlayedEpisode | None]]:
        """See `Candidate`. Episodes of a batch are played in lock step."""
        stop_ids = self.params.stop_token_ids
        player = Player(self.engine, environment, self.renderer, self.table, stop_ids, limits, self.context)
        for start in range(0, len(tasks), self._batch_size):
            batch = tasks[start : start + self._batch_size]
            prompts = self.renderer.render_all([task_example(environment, task) for task in batch])
            fits = [player.has_room(len(prompt.prompt_ids), self.params.max_new_tokens) for prompt in prompts]
            played = iter(player.play(list(compress(prompts, fits)), self.params, lambda _: next(self._seeds)))
            for index, fitting in enumerate(fits, start):
                yield index, next(played)[0] if fitting else None

    def _encode(self, prompt: ChatPrompt | OpenPrompt) -> Tensor:
        if isinstance(prompt, ChatPrompt):
            return self.renderer.encode_chat(prompt)
        example = TurnExample(prompt.tools, prompt.history, Message("assistant"), "prompt", "0")
        return self.renderer.render(example).prompt_ids

    def _room(self, prompt: Tensor) -> int:
        """Tokens that an answer may have."""
        wanted = self.params.max_new_tokens
        return wanted if self.context is None else max(0, min(wanted, self.context - len(prompt)))

    def _batches(self, indices: Sequence[int], rooms: Sequence[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in indices:
            if batch and (len(batch) == self._batch_size or rooms[index] != rooms[batch[0]]):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _read(self, prompt: ChatPrompt | OpenPrompt, token_ids: Tensor, finish_reason: str) -> Answer:
        tools = () if isinstance(prompt, ChatPrompt) else prompt.tools
        reading = Reading(self.renderer.format, self.renderer.response_prefix, tools)
        decoded = read_completion(token_ids, self.table, self.params.stop_token_ids, reading)
        return Answer(decoded.text, decoded.parsed, len(token_ids), finish_reason)


def start_engine(
    config: DictConfig,
    settings: GenerationSettings,
    device: torch.device,
    source: ModelSource,
    sampling: SamplingParams | None = None,
) -> EngineGenerate:
    """Answers by the engine of the config's `rollout`, which gets the weights of the model.

    Args:
        config: with a complete prompt.
        settings: of its `generation`.
        device: of the model.
        source: that the model is loaded from.
        sampling: None: greedy.
    """
    cache = find_ways(source.policy, cache_file(config, "ways")).cache
    loaded = load_source(source)
    loaded.model.to(device)  # type: ignore[arg-type]
    max_new_tokens, context = settings.limits(loaded.model)
    renderer = PromptRenderer(loaded.tokenizer, **OmegaConf.to_container(config.prompt))  # type: ignore[arg-type]
    for_engine = EngineSource.of(loaded.model, source.policy, cache=cache, longest=context)
    engine: RolloutEngine = instantiate(config.rollout)(for_engine)
    engine.update_weights(merged_named_tensors(loaded.model), 0)
    check_engine(engine, loaded.model)
    return EngineGenerate(
        engine,
        renderer,
        TokenBytes.from_tokenizer(loaded.tokenizer),
        loaded.stop_token_ids,
        max_new_tokens=max_new_tokens,
        context=context,
        batch_size=settings.batch_size,
        sampling=sampling,
        seed=config.seed,
    )
