"""The model card of an exported policy: `model_card.md.jinja`, filled from plain values only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from jinja2 import StrictUndefined, Template

from src.data.rendering import compact_prompt
from src.data.templates.native import openai_tool
from src.data.templates.published import published_prompt
from src.protocol.dialogue import Message, ToolSpec
from src.protocol.formats.known import REST, format_named

_SETTINGS = (
    *("algorithm.estimator", "algorithm.loss", "sampling", "updates", "optimizer", "reward", "warm_start"),
    *("seed", "trainer.precision", "policy.dtype", "policy.lora"),
)
"""Keys and sections of the table of hyper-parameters."""
_TOOL = ToolSpec.of(
    "get_weather",
    "Weather forecast for a city.",
    {"city": {"type": "str", "description": "Name of the city."}, "day": {"type": "str", "description": "Which day."}},
)
_QUESTION = Message("user", "Do I need an umbrella in Oslo tomorrow?")


@dataclass(frozen=True, slots=True)
class Scores:
    """What validation and benchmarks said about the policy after some rollout steps.

    Attributes:
        rollout_step: rollout steps done by then.
        values: `<split or benchmark>/<score>` and `…/<kind of prompt>`.
    """

    rollout_step: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card is made of; what is unknown is left out of it.

    Attributes:
        name: of the model.
        config: the composed config of the run, or only its `policy` and `prompt`.
        rollout_steps: done; None: not trained here.
        optimizer_steps: done.
        before: scores before the first rollout step.
        after: the last scores.
        region_factors: region -> factor at the end.
        prompts: in the training split.
        dropped: split -> prompts that were too long.
        dtype: of the weights in the folder.
        command: that trained, or that exported.
        versions: package -> version.
        format: in which the policy writes steps.
        thinks: whether its chat template writes thoughts.
    """

    name: str
    config: Mapping[str, Any]
    rollout_steps: int | None = None
    optimizer_steps: int | None = None
    before: Sequence[Scores] = ()
    after: Sequence[Scores] = ()
    region_factors: Mapping[str, float] = field(default_factory=dict)
    prompts: int | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    dtype: str | None = None
    command: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    format: str = REST.name
    thinks: bool = True


def model_card(facts: CardFacts) -> str:
    """A Hugging Face model card: YAML front matter, then Markdown. The licence is left for whoever publishes it."""
    policy, prompt = facts.config["policy"], facts.config.get("prompt") or {}
    random = policy.get("weights") == "random"
    base = base_model(policy)
    on_hub = policy.get("path") is None and policy.get("package") is None and not random
    layout = prompt.get("layout") or "published"
    template = dict(prompt.get("chat_template_kwargs") or {})
    flat = dict(_flat("", facts.config))
    settings = {key: flat[key] for part in _SETTINGS for key in flat if f"{key}.".startswith(f"{part}.")}
    text = Path(__file__).with_name("model_card.md.jinja").read_text(encoding="utf-8")
    card = Template(text, trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    return card.render(
        facts=facts,
        number=_number,
        policy={"lora": None, **policy},
        prompt={"layout": None, **prompt},
        algorithm=facts.config.get("algorithm"),
        data=facts.config.get("data"),
        trained=facts.rollout_steps is not None,
        base=f"the architecture of {base} with random weights" if random else base,
        hub_base=policy.get("hub_id") if on_hub else None,
        layout=layout,
        chat=(compact_prompt if layout == "compact" else published_prompt)([_TOOL], [_QUESTION]),
        question=_QUESTION.text,
        tool_json=json.dumps(openai_tool(_TOOL), indent=4),
        serve=_serve(facts, template),
        template_json=json.dumps(template),
        template_arguments="".join(f", {key}={value!r}" for key, value in template.items()),
        before=_merged(facts.before),
        after=_merged(facts.after),
        sources=dict.fromkeys(_sources(facts.config.get("data", {}).get("train"))),
        settings={key: value for key, value in settings.items() if value is not None},
    )


def _serve(facts: CardFacts, template: Mapping[str, Any]) -> str:
    """The options of `vllm serve` that read calls and thoughts, and render prompts as in training."""
    form = format_named(facts.format)
    options = [f"--enable-auto-tool-choice --tool-call-parser {form.tool_call_parser}"] if form.tool_call_parser else []
    if form.reasoning_parser and facts.thinks and template.get("enable_thinking", True):
        options.append(f"--reasoning-parser {form.reasoning_parser}")
    if template:
        options.append(f"--default-chat-template-kwargs '{json.dumps(template)}'")
    return " ".join(options)


def base_model(policy: Mapping[str, Any]) -> str:
    """Name of what a policy started from: the hub id, else its file or folder without the place.

    >>> base_model({"hub_id": "Qwen/Qwen3-8B"}), base_model({"path": "/models/mine", "hub_id": "Qwen/Qwen3-8B"})
    ('Qwen/Qwen3-8B', 'mine')
    """
    if policy.get("path") is not None:
        return PurePath(str(policy["path"])).name
    if policy.get("package") is not None:
        return PurePath(str(policy["gguf_file"])).stem
    return str(policy.get("hub_id"))


def _merged(scores: Iterable[Scores]) -> dict[str, float]:
    """Those that are about a whole split or benchmark."""
    values = {key: value for part in scores for key, value in part.values.items()}
    return {key: value for key, value in values.items() if key.count("/") == 1 and not key.endswith("/seconds")}


def _sources(section: Any) -> Iterator[str]:
    """Every source in a config, with where it reads from."""
    if isinstance(section, Mapping):
        kind = str(section.get("_target_", ""))
        if ".sources." in kind and "parts" not in section:
            path, hub_id = section.get("path"), section.get("hub_id")
            place = None if "source" in section else PurePath(str(path)).name if path else hub_id
            yield kind.rpartition(".")[2] + (f" ({place})" if place else "")
        for value in section.values():
            yield from _sources(value)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Leaves of a config by their full keys; where classes are and paths of this machine are left out.

    >>> list(_flat("", {"loss": {"_target_": "x", "clip": {"low": 0.2}, "path": "/here"}}))
    [('loss.clip.low', 0.2)]
    """
    if not isinstance(value, Mapping):
        yield prefix, value
        return
    for name, inner in value.items():
        if not str(name).startswith("_") and name not in ("path", "source"):
            yield from _flat(f"{prefix}.{name}" if prefix else name, inner)


def _number(value: float | None) -> str:
    """At most four significant digits; a dash where there is none.

    >>> _number(0.8633333), _number(12.0), _number(None)
    ('0.8633', '12', '–')
    """
    return "–" if value is None else f"{value:.4g}"
