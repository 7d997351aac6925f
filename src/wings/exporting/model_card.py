"""The model card of an exported policy: what it is, how it came about, how to use it. Text from plain values only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import yaml

from src.data.rendering import compact_prompt, published_prompt
from src.protocol.dialogue import Message, ToolSpec

_TITLE = "ResT: Reshaping Token-Level Policy Gradients for Tool-Use Large Language Models"
_PAPER = f"[{_TITLE}](https://arxiv.org/abs/2509.21826)"
_REGIONS = ("reasoning", "tool_name", "tool_parameters", "format", "response", "other")
_ALPHAS = {"alpha_format": "format −", "alpha_parameters": "tool_parameters +", "alpha_reasoning": "reasoning +"}
_SETTINGS = ("algorithm.estimator", "algorithm.loss", "sampling", "updates", "optimizer", "reward", "warm_start")
_TOOL = ToolSpec(
    "get_weather",
    "Weather forecast for a city.",
    {"city": {"type": "str", "description": "Name of the city."}, "day": {"type": "str", "description": "Which day."}},
)
_QUESTION = Message("user", "Do I need an umbrella in Oslo tomorrow?")
_FEW = ("seed", "trainer.precision", "policy.dtype", "policy.lora")


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


def model_card(facts: CardFacts) -> str:
    """A Hugging Face model card: YAML front matter, then Markdown. The licence is left for whoever publishes it."""
    sections = [_front_matter(facts), _introduction(facts), _usage(facts.config.get("prompt") or {})]
    if facts.rollout_steps is not None:
        sections += [_scores(facts), _method(facts), _data(facts), _hyperparameters(facts)]
    return "\n\n".join(section for section in [*sections, _provenance(facts)] if section) + "\n"


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


def _front_matter(facts: CardFacts) -> str:
    policy = facts.config["policy"]
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    known_base = policy.get("path") is None and policy.get("package") is None and policy.get("hub_id") is not None
    if known_base and policy.get("weights") != "random":
        head["base_model"] = policy["hub_id"]
    head["tags"] = ["tool-use", "function-calling"]
    if facts.rollout_steps is not None:
        head["tags"] += ["reinforcement-learning"] * ("loss" in facts.config["algorithm"]) + [_method_name(facts)]
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---"


def _introduction(facts: CardFacts) -> str:
    policy = facts.config["policy"]
    base = base_model(policy)
    if policy.get("weights") == "random":
        base = f"the architecture of {base} with random weights"
    lines = [f"# {facts.name}\n"]
    if facts.rollout_steps is None:
        lines.append(f"{base}, written anew for transformers and vLLM.")
    else:
        steps = f"{facts.rollout_steps} rollout steps ({facts.optimizer_steps} optimizer steps)"
        lines.append(f"{base}, trained to call tools with the method `{_method_name(facts)}` for {steps}.")
        lines.append(f"The paper: {_PAPER}.")
    if policy.get("lora") and facts.rollout_steps is not None:
        lines.append(f"Adapters of rank {policy['lora']['rank']} were trained and are merged into the weights.")
    if facts.dtype is not None:
        lines.append(f"Weights are in {facts.dtype}.")
    return "\n".join(lines)


def _usage(prompt: Mapping[str, Any]) -> str:
    """Code that asks the model and runs on the folder that it lies in, and how its answers read.

    Args:
        prompt: `layout` and `chat_template_kwargs` of the prompts that it was trained with; empty: unknown.
    """
    layout = prompt.get("layout") or "published"
    template = prompt.get("chat_template_kwargs") or {}
    given = "".join(f", {key}={value!r}" for key, value in template.items())
    chat = (published_prompt if layout == "published" else compact_prompt)([_TOOL], [_QUESTION])
    known = "Prompts were written" if prompt.get("layout") else "Prompts may be written"
    served = "" if not template else f" Pass `chat_template_kwargs={json.dumps(dict(template))}` with each request."
    return f'''## Use

{known} in the layout `{layout}`: a system message that lists the tools, and a user message with the whole dialogue so
far. Settings of the chat template: `{json.dumps(dict(template))}`.

````python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="auto")
system = """{chat.system}"""
user = """{chat.user}"""
messages = [{{"role": "system", "content": system}}, {{"role": "user", "content": user}}]
text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True{given})
inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device)
answer = model.generate(**inputs, max_new_tokens=512)[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
````

With vLLM: `vllm serve FOLDER`, and the same two messages as a plain chat completion.{served} Do not pass `tools=`, and
start no tool-call parser: the tools stand in the system message, and the calls are text in the answer. A parser of the
Hermes kind reads one JSON object with `arguments` from each block, and would not read these calls.

An answer is `<think> … </think>`, then `<tool_call> … </tool_call>` with one JSON object a line (`name`, `parameters`),
or `<response> … </response>`, or both. `src.protocol.parsing.parse(answer).calls` of the project that trained it reads
the calls from the text. What a tool returned goes into the user message as `<obs> … </obs>`.
`generation_config.json` samples as training did; for greedy answers set `do_sample=False` (vLLM: `temperature=0`).'''


def _scores(facts: CardFacts) -> str:
    before, after = _merged(facts.before), _merged(facts.after)
    if not after:
        return ""
    rows = [(f"`{key}`", _number(before.get(key)), _number(value)) for key, value in sorted(after.items())]
    steps = ", ".join(str(step) for step in sorted({scores.rollout_step for scores in facts.after}))
    told = f"Greedy answers to held-out prompts and benchmarks; after training means after rollout step {steps}."
    return f"## Scores\n\n{told}\n\n{_table(('', 'before training', 'after training'), rows)}"


def _merged(scores: Iterable[Scores]) -> dict[str, float]:
    """Those that are about a whole split or benchmark."""
    values = {key: value for part in scores for key, value in part.values.items()}
    return {key: value for key, value in values.items() if key.count("/") == 1 and not key.endswith("/seconds")}


def _method(facts: CardFacts) -> str:
    weighting = facts.config["algorithm"]["weighting"]
    initial = weighting["factors"]
    followed = {"response": "reasoning", "other": "format"}
    rows = []
    for region in _REGIONS:
        value = initial.get(region)
        start = f"as {followed[region]}" if value is None and region in followed else _number(value)
        rows.append((region, start, _number(facts.region_factors.get(region))))
    moves = [f"{text}{weighting[key]}" for key, text in _ALPHAS.items() if weighting.get(key)]
    unit = "over training" if weighting.get("progress") == "fraction" else "per rollout step"
    curriculum = f"Curriculum, {unit}: {', '.join(moves)}." if moves else "No curriculum: the factors stay."
    initialiser = weighting.get("initialiser", "fixed")
    if initialiser != "fixed":
        curriculum = f"The first factors are measured (`{initialiser}`). {curriculum}"
    columns = ("region", "configured factor", "factor at the end") if facts.region_factors else ("region", "factor")
    table = _table(columns, [row[: len(columns)] for row in rows])
    told = f"`{_method_name(facts)}`. Weight of a token by its region, before normalisation:"
    return f"## Method\n\n{told}\n\n{table}\n\n{curriculum}"


def _data(facts: CardFacts) -> str:
    data = facts.config["data"]
    sources = "; ".join(dict.fromkeys(_sources(data.get("train", {}))))
    lines = [f"- Source: {sources}."]
    if facts.prompts is not None:
        lines.append(f"- Training prompts: {facts.prompts}; {data['prompts_per_step']} a rollout step.")
    else:
        lines.append(f"- Prompts of a rollout step: {data['prompts_per_step']}.")
    if facts.dropped:
        counts = ", ".join(f"{split} {count}" for split, count in facts.dropped.items())
        lines.append(f"- Left out for more than {data['max_prompt_tokens']} tokens: {counts}.")
    return "## Data\n\n" + "\n".join(lines)


def _sources(section: Any) -> Iterator[str]:
    """Every source in a config, with where it reads from."""
    if isinstance(section, Mapping):
        kind = str(section.get("_target_", ""))
        if ".sources." in kind and not any(key in section for key in ("parts", "source")):
            path, hub_id = section.get("path"), section.get("hub_id")
            place = PurePath(str(path)).name if path else hub_id
            yield kind.rpartition(".")[2] + (f" ({place})" if place else "")
        elif ".sources." in kind and "parts" not in section:
            yield kind.rpartition(".")[2]
        for value in section.values():
            yield from _sources(value)


def _hyperparameters(facts: CardFacts) -> str:
    flat = {key: value for section in (*_SETTINGS, *_FEW) for key, value in _flat(section, _at(facts.config, section))}
    rows = [(f"`{key}`", f"`{value}`") for key, value in flat.items() if value is not None]
    return f"## Hyper-parameters\n\n{_table(('key', 'value'), rows)}"


def _provenance(facts: CardFacts) -> str:
    lines = []
    if facts.command is not None:
        lines.append(f"```bash\n{facts.command}\n```")
    if facts.versions:
        lines.append(", ".join(f"{package} {version}" for package, version in facts.versions.items()))
    return "## Provenance\n\n" + "\n\n".join(lines) if lines else ""


def _method_name(facts: CardFacts) -> str:
    return str(facts.config["algorithm"]["name"])


def _at(config: Mapping[str, Any], path: str) -> Any:
    found: Any = config
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Leaves of a config by their full keys; where classes are and paths of this machine are left out.

    >>> list(_flat("loss", {"_target_": "x", "clip": {"low": 0.2}, "path": "/here"}))
    [('loss.clip.low', 0.2)]
    """
    if not isinstance(value, Mapping):
        yield key, value
        return
    for name, inner in value.items():
        if not str(name).startswith("_") and name not in ("path", "source"):
            yield from _flat(f"{key}.{name}", inner)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(_table(("a", "b"), [("1", "2")]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    return "\n".join(f"| {' | '.join(row)} |" if row else "|" + "---|" * len(head) for row in (head, (), *rows))


def _number(value: float | None) -> str:
    """At most four significant digits; a dash where there is none.

    >>> _number(0.8633333), _number(12.0), _number(None)
    ('0.8633', '12', '–')
    """
    return "–" if value is None else f"{value:.4g}"
