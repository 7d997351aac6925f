"""The part of a model card that says how to use the model: an example that runs on the folder that it lies in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from src.data.rendering import compact_prompt, published_prompt
from src.protocol.dialogue import ChatPrompt, Message, ToolSpec

_TOOL = ToolSpec(
    "get_weather",
    "Weather forecast for a city.",
    {"city": {"type": "str", "description": "Name of the city."}, "day": {"type": "str", "description": "Which day."}},
)
_QUESTION = Message("user", "Do I need an umbrella in Oslo tomorrow?")


def usage_section(prompt: Mapping[str, Any]) -> str:
    """Code that asks the model, and how its answers read.

    Args:
        prompt: `layout` and `chat_template_kwargs` of the prompts that it was trained with; empty: unknown.
    """
    layout = prompt.get("layout") or "published"
    template = prompt.get("chat_template_kwargs") or {}
    given = "".join(f", {key}={value!r}" for key, value in template.items())
    chat = _example(str(layout))
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


def _example(layout: str) -> ChatPrompt:
    build = published_prompt if layout == "published" else compact_prompt
    return build([_TOOL], [_QUESTION])
