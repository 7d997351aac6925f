"""Gold answers as calls, the way a model would write them in the output protocol."""

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from src.environments.bfcl.cases import Case
from src.protocol.dialogue import ToolCall

# The checkers reject whatever can be written for these, or accept an answer only without an optional argument.
NEVER_PASS = frozenset(
    "java_36 java_64 java_65 live_simple_106-63-0 live_simple_112-68-0 "
    "live_multiple_862-181-3 live_multiple_964-207-0".split()
)
WITHOUT_OPTIONAL = frozenset("parallel_multiple_12 parallel_multiple_26 live_parallel_9-5-0".split())


def gold_calls(case: Case) -> list[ToolCall]:
    """Of a single-turn case: the first accepted value of every argument."""
    calls = []
    for answer in case.answer:
        ((name, arguments),) = answer.items()
        doc = next((doc for doc in case.functions if doc["name"] == name), case.functions[0])
        properties, required = doc["parameters"]["properties"], doc["parameters"]["required"]
        parameters = {}
        for key, accepted in arguments.items():
            values = [value for value in accepted if value != ""]
            optional = "" in accepted[:1] or ("" in accepted and case.id in WITHOUT_OPTIONAL)
            if key in required or (values and not optional):
                value = plain(values[0]) if values else ""
                parameters[key] = literal(value, properties.get(key, {}), case.category)
        calls.append(ToolCall(doc["name"], parameters))
    return calls


def plain(value: Any) -> Any:
    """A value from the answers, whose dicts hold lists of accepted values again."""
    if isinstance(value, dict):
        options = {key: accepted if isinstance(accepted, list) else [accepted] for key, accepted in value.items()}
        chosen = {key: [option for option in accepted if option != ""] for key, accepted in options.items()}
        return {key: plain(accepted[0]) for key, accepted in chosen.items() if accepted}
    return [plain(item) for item in value] if isinstance(value, list) else value


def literal(value: Any, doc: Mapping[str, Any], category: str) -> Any:
    """The value as Java or JavaScript source, which those categories want; as it is elsewhere."""
    if category == "java":
        return java(value, doc.get("type", "any"), doc.get("items", {}).get("type", "any"))
    return javascript(value, doc.get("type", "any")) if category == "javascript" else value


def java(value: Any, kind: str, item: str = "any") -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and kind == "ArrayList":
        items = ", ".join(java_item(element, item) for element in value)
        return f"new ArrayList<{item}>(Arrays.asList({items}))" if value else "new ArrayList<>()"
    if isinstance(value, list):  # the official converter keeps the quotes of an array's strings
        return f"new {item}[]{{{', '.join(map(str, value))}}}"
    if isinstance(value, dict):
        puts = " ".join(f'put("{key}", {java_item(element, "any")});' for key, element in value.items())
        return f"new HashMap<String, Object>() {{{{ {puts} }}}}"
    return f"{value}{ {'long': 'L', 'float': 'f'}.get(kind, '') }"


def java_item(value: Any, kind: str) -> str:
    if isinstance(value, str) and kind not in ("char", "String", "any"):
        return value
    return f"'{value}'" if kind == "char" else f'"{value}"' if isinstance(value, str) else java(value, kind)


def javascript(value: Any, kind: str) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value) + ("n" if kind == "Bigint" else "")


def gold_turns(case: Case) -> list[list[list[ToolCall]]]:
    """Of a multi-turn case: `[turn][step][call]`, one call a step."""
    docs = [*case.functions, *(doc for later in case.held_back.values() for doc in later)]
    positions = {doc["name"]: list(doc["parameters"]["properties"]) for doc in docs}
    return [[[_read_call(call, positions)] for call in turn] for turn in case.answer]


def _read_call(source: str, positions: Mapping[str, Sequence[str]]) -> ToolCall:
    call = ast.parse(source, mode="eval").body
    name = call.func.id
    arguments = dict(zip(positions.get(name, ()), map(ast.literal_eval, call.args), strict=False))
    return ToolCall(name, arguments | {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords})


def step_text(calls: Sequence[ToolCall]) -> str:
    """A response in the output protocol."""
    lines = "\n".join(json.dumps({"name": call.name, "parameters": call.parameters}) for call in calls)
    return f"<think> So. </think>\n<tool_call>\n{lines}\n</tool_call>" if calls else "<response> Done. </response>"
