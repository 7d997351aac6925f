"""Run folders with samples, written by hand; hostile texts among them."""

import json
from pathlib import Path
from typing import Any

CALL = '<think> Look. </think>\n<tool_call>\n{"name": "sky", "parameters": {"city": "%s"}}\n</tool_call>'
GOLD = {"name": "sky", "parameters": {"city": "Oslo"}}

HOSTILE = {
    "script": "</script><script>window.pwned=1</script>",
    "comment": "<!--<script>",
    "style": "</style><style>*{display:none}</style>",
    "image": "<img src=x onerror=window.pwned=1>",
    "template": "${alert(1)} $note {{ 7*7 }} {% raw %} %s",
    "entities": "&lt;b&gt; &#x3c;i&#x3e; &",
    "lines": "a\u2028b\u2029c\x85d\re",
    "direction": "\u202eevil\u2066\u200b\ufeff",
    "half": "\ud800 \udfff",
    "control": "\x00\x1b]0;owned\x07\x1b[2J\x1b[1;1H\b\x9b31m",
    "markup": "[bold red]x[/] [link=file:///etc/passwd]y[/link] :warning:",
    "prototype": "__proto__",
    "quotes": "\"'`\\",
    "cdata": "]]><![CDATA[",
    "japanese": "雨が降る 🌧",
}


def record(completion: int = 0, step: int = 0, example: str = "doc/0", **changes: Any) -> dict[str, Any]:
    """A logged completion of four tokens, as the newest `rollout_log` writes it."""
    first = {"prompt": "system\nWeather in Oslo?", "gold_calls": [GOLD]} if completion == 0 else {}
    return {
        "rollout_step": step,
        "example": example,
        "completion": completion,
        **first,
        "text": CALL % "Rome",
        "target": CALL % "Oslo",
        "reward": 1.5 - completion,
        "advantage": 1.0 - 2 * completion,
        "format": 1.0,
        "name": 1.0,
        "parameter_names": 1.0,
        "parameter_values": 0.0,
        "correctness": 0.6667,
        "exact_match": 0.0,
        "finish_reason": "stop",
        "tokens": ["<think>", " Look.", " </think>", "<eos>"],
        "regions": ["format", "reasoning", "format", "format"],
        "weights": [1.25, 0.5, 1.25, 1.0],
        "entropies": [0.00014, 1.22054, 0.3, 0.0],
        "rollout_logprobs": [-1e-05, -1.25915, -0.5, -0.0],
        "old_logprobs": [-1e-05, -1.25905, -0.5, -0.0],
        "loss_terms": [-0.03125, -0.0125, -0.03125, -2.5e-07],
        **changes,
    }


def episode(*answers: str, result: str = "rain", **changes: Any) -> dict[str, Any]:
    """A logged episode of two turns, of three tokens and of two; its answers may be others."""
    first, second = answers or (CALL % "Oslo", "It rains.")
    call = {"name": "sky", "arguments": {"city": "Oslo"}}
    of_turn_1 = {"text": first, "calls": [call], "tokens": 3, "earned": 0.25, "advantage": -0.5}
    of_turn_2 = {"text": second, "calls": [], "tokens": 2, "earned": 0.5, "advantage": 1.5}
    asked = {"role": "user", "name": "", "text": "Weather in Oslo?"}
    answered = {"role": "observation", "name": "sky", "text": result}
    return {
        "ending": "done",
        "rewrites": 1,
        "faults": {"malformed": 2, "tool_error": 1},
        "turns": [{"observed": [asked], **of_turn_1}, {"observed": [answered], **of_turn_2}],
        **changes,
    }


def episode_record(completion: int = 0, step: int = 0, **changes: Any) -> dict[str, Any]:
    """A logged completion that is an episode."""
    lists = ("weights", "entropies", "rollout_logprobs", "old_logprobs", "loss_terms")
    found = record(completion, step, "world/0", episode=episode(), target="", reward=0.75, exact_match=0.0)
    if completion == 0:
        found["gold_calls"] = []
    for name in ("name", "parameter_names", "parameter_values", "correctness"):
        del found[name]
    columns = {name: [*found[name], 0.0625] for name in lists}
    said = {"tokens": ["<think>", " Look.", "<eos>", "Rain.", "<eos>"]}
    regions = ["format", "reasoning", "format", "response", "format"]
    return found | columns | said | {"regions": regions, "state": 1.0, "answer": 0.5} | changes


def old_record(**changes: Any) -> dict[str, Any]:
    """The same as older versions wrote it."""
    new = record(**changes)
    return {key: new[key] for key in new if key not in ("prompt", "gold_calls", "old_logprobs", "loss_terms")}


def group(step: int = 0, example: str = "doc/0", size: int = 2, **changes: Any) -> list[dict[str, Any]]:
    return [record(index, step, example, **changes) for index in range(size)]


def run_folder(folder: Path, records: list[dict[str, Any]], method: str = "rest") -> Path:
    """A run folder with these samples."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(f"algorithm:\n  name: {method}\n")
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records)
    (folder / "rollouts.jsonl").write_text(lines, encoding="utf-8", errors="surrogatepass")
    return folder
