"""From rows of messages to a client with tools: what a server reads is what our parser reads."""

from __future__ import annotations

import json
import random
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

from src.data.rendering import PromptRenderer
from src.data.sources.composed.source import ComposedSource
from src.data.sources.messages import MessagesSource
from src.data.templates.native import openai_messages, openai_tool
from src.models.loading.loading import load_policy
from src.models.loading.policy_config import PolicyConfig
from src.protocol.dialogue import ToolCall, ToolSpec
from src.protocol.formats.known import format_named
from src.protocol.regions import read_completion
from src.protocol.token_bytes import TokenBytes
from src.rollout.engine import SamplingParams
from src.rollout.native.engine import NativeEngine
from tests.conftest import ROOT
from tests.distributed.runs import run
from tests.protocol.conftest import package_folder
from tests.vllm.oracles import equal, why_different
from tests.vllm.server import VllmServer

pytestmark = pytest.mark.vllm
NEW_TOKENS = 144
XML_CALL = (
    "{{- '<tool_call>\\n<function=' + call.name + '>\\n' }}"
    "{%- for key, value in call.arguments.items() %}"
    "{{- '<parameter=' + key + '>\\n' + (value if value is string else value | tojson) + '\\n</parameter>\\n' }}"
    "{%- endfor %}"
    "{{- '</function>\\n</tool_call>' }}"
)
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_CITIES = ("Oslo", "Rome", "Lima", "Bonn", "Kiev", "Cairo", "Delhi", "Quito")
_TOOLS: dict[str, tuple[str, dict[str, str], str]] = {
    "get_weather": (
        "Weather of a city.",
        {"city": "string", "days": "integer"},
        "Weather in {city} for {number} days?",
    ),
    "book_table": ("Book a table.", {"place": "string", "guests": "integer"}, "A table for {number} in {city}."),
    "play_song": ("Play a song.", {"title": "string"}, "Play {city}."),
    "set_alarm": ("Set an alarm.", {"hour": "integer"}, "Wake me at {number}."),
}


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows as OpenAI has them: a question, all tools in some order, and the call that answers it."""
    rng = random.Random(seed)
    made = []
    for index in range(count):
        name, city, number = rng.choice(list(_TOOLS)), rng.choice(_CITIES), rng.randrange(1, 9)
        _, parameters, question = _TOOLS[name]
        arguments = {key: city if kind == "string" else number for key, kind in parameters.items()}
        call = {"id": f"call_{index}", "type": "function"}
        call["function"] = {"name": name, "arguments": json.dumps(arguments)}  # type: ignore[assignment]
        answer = {"role": "assistant", "content": None, "tool_calls": [call]}
        asked = {"role": "user", "content": question.format(city=city, number=number)}
        tools = [tool_of(name) for name in rng.sample(list(_TOOLS), len(_TOOLS))]
        made.append({"messages": [asked, answer], "tools": tools})
    return made


def tool_of(name: str) -> dict[str, Any]:
    about, parameters, _ = _TOOLS[name]
    schema = {"type": "object", "properties": {key: {"type": kind} for key, kind in parameters.items()}}
    schema["required"] = list(parameters)  # type: ignore[assignment]
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


def start(folder: Path, template: str) -> Path:
    """A small Qwen3 with random weights, the tiny policy's tokenizer and a real model's chat template."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "src/models/tiny")
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKERS])
    tokenizer.chat_template = (package_folder("trl") / f"chat_templates/{template}.jinja").read_text(encoding="utf-8")
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the smallest that vLLM's CPU kernels know
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_client_gets_the_calls_that_our_parser_reads(tmp_path: Path) -> None:
    """Of a real model's template: Qwen3.5's, without thoughts."""
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows(400, 1))))
    asked = rows(50, 2)
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    run(
        tmp_path / "run",
        *("experiment=tiny", "policy=default", f"policy.path={start(tmp_path / 'start', 'qwen3_5_nothink')}"),
        *("policy.dtype=float32", "prompt.layout=native", "data=messages", f"data.path={tmp_path / 'rows.jsonl'}"),
        *("data.max_prompt_tokens=1400", "data.prompts_per_step=16", "updates.prompts_per_minibatch=16"),
        *("algorithm=sft", "updates.rollout_steps=140", "optimizer.learning_rate=4e-3", "data.limit_val=8"),
        *("trainer.val_check_interval=140", "validate_at_start=false", f"sampling.max_new_tokens={NEW_TOKENS}"),
        *("callbacks=hf_export", "callbacks.live_figures=null", "benchmark=[]"),
    )
    exported = tmp_path / "run/exported/final"
    a_client_gets_our_calls(exported, tmp_path / "asked.jsonl", asked, "--tool-call-parser qwen3_xml")


@pytest.mark.parametrize("form", ["hermes", "qwen3_xml"])
def test_a_client_gets_the_calls_of_the_tiny_policy(form: str, tmp_path: Path) -> None:
    """Three rollout steps as it is, or SFT in the other format first; tools of the prompts asked were never seen."""
    given = composed_rows(400, "train")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, given)))
    asked = composed_rows(50, "val_unseen")
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    overrides = ["updates.rollout_steps=3", "trainer.val_check_interval=3"]
    if form == "qwen3_xml":
        overrides = [f"policy.path={with_xml_calls(tmp_path / 'start')}", "algorithm=sft"]
        overrides += ["updates.rollout_steps=60", "trainer.val_check_interval=60", "optimizer.learning_rate=1e-3"]
    run(
        tmp_path / "run",
        *("experiment=tiny_native", "data=messages", f"data.path={tmp_path / 'rows.jsonl'}", "data.limit_val=8"),
        *("data.max_prompt_tokens=700", "data.prompts_per_step=16", "validate_at_start=false"),
        *("callbacks=hf_export", "callbacks.live_figures=null", "benchmark=[]", *overrides),
    )
    expected = f"--tool-call-parser {form} --reasoning-parser qwen3"
    a_client_gets_our_calls(tmp_path / "run/exported/final", tmp_path / "asked.jsonl", asked, expected)


def composed_rows(count: int, split: str) -> list[dict[str, Any]]:
    """Requests of the generated corpus that a call answers."""
    kinds = {"single": 0.7, "parallel_different": 0.3}
    examples = ComposedSource(2 * count, 2 * count, kinds=kinds).load(split)
    asked = [example for example in examples if len(example.history) == 1][:count]
    return [
        {
            "messages": openai_messages((*example.history, example.target)),
            "tools": [openai_tool(tool) for tool in example.tools],
        }
        for example in asked
    ]


def with_xml_calls(folder: Path) -> Path:
    """The tiny policy, with a template that writes calls in `qwen3_xml`."""
    shutil.copytree(ROOT / "src/models/tiny_native", folder)
    template = folder / "chat_template.jinja"
    written = template.read_text()
    first, last = "{{- '<tool_call>", "</tool_call>' }}"
    start, end = written.index(first), written.index(last) + len(last)
    template.write_text(written[:start] + XML_CALL + written[end:])
    return folder


def a_client_gets_our_calls(folder: Path, rows: Path, asked: list[dict[str, Any]], expected: str) -> None:
    """Of the exported policy, served by the card's command, which ends in `expected`."""
    ours = our_calls(folder, rows)
    (command,) = re.findall(r"^vllm serve FOLDER (.*)$", (folder / "README.md").read_text(), re.MULTILINE)
    assert command.endswith(expected)
    server = VllmServer(folder, folder.parent / "server.txt", *shlex.split(command), engine=False)
    try:
        server.start()
        from openai import OpenAI  # which vLLM brings

        client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
        theirs = [client_calls(client, row) for row in asked]
    finally:
        server.kill()
    form = format_named(command.split("--tool-call-parser ")[1].split()[0])
    for (answer, tools, mine), yours in zip(ours, theirs, strict=True):
        assert equal(mine, yours) or why_different(form, answer, tools, yours) is not None, answer
    assert sum(bool(mine) for _, _, mine in ours) >= 35
    assert sum(equal(mine, yours) for (_, _, mine), yours in zip(ours, theirs, strict=True)) >= 40


def our_calls(folder: Path, asked: Path) -> list[tuple[str, Sequence[ToolSpec], Sequence[ToolCall]]]:
    """Greedy answers of the exported policy by the engine of this process, the tools on offer, and what we read."""
    loaded = load_policy(PolicyConfig(path=folder, dtype="float32"))
    renderer = PromptRenderer(loaded.tokenizer, "native")
    prompts = renderer.render_all(MessagesSource(path=str(asked), val_share=0.0).load("train"))
    params = SamplingParams(temperature=0.0, max_new_tokens=NEW_TOKENS, stop_token_ids=loaded.stop_token_ids)
    engine = NativeEngine(loaded.policy.model.eval(), cache="padded")
    sampled = engine.generate([prompt.prompt_ids for prompt in prompts], params, [0] * len(prompts))
    table = TokenBytes.from_tokenizer(loaded.tokenizer)
    read = [
        read_completion(completion.token_ids, table, loaded.stop_token_ids, prompt.reading)
        for prompt, (completion,) in zip(prompts, sampled, strict=True)
    ]
    return [
        (answer.text, prompt.reading.tools, answer.parsed.calls or ())
        for prompt, answer in zip(prompts, read, strict=True)
    ]


def client_calls(client: Any, row: dict[str, Any]) -> list[ToolCall]:
    """What an OpenAI client gets."""
    answer = client.chat.completions.create(
        model="policy", messages=row["messages"][:1], tools=row["tools"], temperature=0.0, max_tokens=NEW_TOKENS
    )
    calls: Any = answer.choices[0].message.tool_calls or []
    return [ToolCall(call.function.name, json.loads(call.function.arguments)) for call in calls]
