"""The tools of a record, read from any legal description of them, and what its calls may ask of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

from src.data.sources.reading import parse_json, require
from src.protocol.dialogue import DataError, JsonValue, ToolCall, ToolSpec, is_schema

_WORDS = {
    **{"str": "string", "int": "integer", "float": "number", "double": "number", "bool": "boolean"},
    **{"list": "array", "tuple": "array", "set": "array", "dict": "object", "none": "null", "nonetype": "null"},
}
_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "string": ("a string", lambda value: isinstance(value, str)),
    "integer": ("an integer", lambda value: _is_number(value) and (isinstance(value, int) or value.is_integer())),
    "number": ("a number", lambda value: _is_number(value)),
    "boolean": ("true or false", lambda value: isinstance(value, bool)),
    "array": ("a list", lambda value: isinstance(value, list)),
    "object": ("an object", lambda value: isinstance(value, Mapping)),
    "null": ("null", lambda value: value is None),
}


def tool_specs(tools: JsonValue, where: str, field: str) -> tuple[ToolSpec, ...]:
    """Tools from their JSON descriptions, in every shape that `ToolSpec` reads; a repeated tool is dropped.

    Parameters may also be JSON text; the tool then has them parsed.

    >>> schema = {"type": "dict", "properties": {"code": {"type": "int"}}, "required": ["code"]}
    >>> (tool,) = tool_specs([{"name": "Zip", "description": "d", "parameters": schema}], "doc", "tools")
    >>> tool.parameters, tool.required
    ({'code': {'type': 'int'}}, ('code',))

    Raises:
        DataError: not a list of objects with a name, or one name for two different tools.
    """
    if not isinstance(tools, list):
        raise DataError(where, field, "a list of tools", tools)
    specs: dict[str, ToolSpec] = {}
    for index, tool in enumerate(tools):
        spec = _tool_spec(tool, where, f"{field}[{index}]")
        known = specs.setdefault(spec.name, spec)
        if known != spec and _meaning(known) != _meaning(spec):
            raise DataError(where, f"{field}[{index}].name", "a name that no other tool has", spec.name)
    return tuple(specs.values())


def _meaning(spec: ToolSpec) -> tuple[object, ...]:
    return spec.description, spec.parameters, spec.required, spec.open


def _tool_spec(tool: JsonValue, where: str, field: str) -> ToolSpec:
    if not isinstance(tool, dict):
        raise DataError(where, field, "an object", tool)
    function = tool
    if wrapped := isinstance(tool.get("function"), dict):
        function, field = tool["function"], field + ".function"
    require(function, "name", str, where, field + ".")
    key = "input_schema" if function.get("input_schema") and not function.get("parameters") else "parameters"
    parameters, field = function.get(key) or {}, f"{field}.{key}"
    if isinstance(parameters, str):
        parameters = parse_json(parameters, where, field) or {}
        function = {**function, key: parameters}
        tool = {**tool, "function": function} if wrapped else function
    if isinstance(parameters, dict) and is_schema(parameters):
        parameters, field = parameters.get("properties") or {}, field + ".properties"
    if not isinstance(parameters, dict):
        raise DataError(where, field, "an object", parameters)
    for name, about in parameters.items():
        if not isinstance(about, dict | bool):
            raise DataError(where, f"{field}.{name}", "an object that describes the parameter", about)
    return ToolSpec(tool, filled=True)


def check_on_offer(calls: Iterable[ToolCall], tools: Iterable[ToolSpec], where: str, field: str) -> None:
    """Refuse a call that the prompt does not offer: no policy could learn it.

    Its tool and its parameters are on offer, the required ones are there, and values have the types that the schema
    names, within lists and objects too. A parameter that is not required may be null. Types that are none of JSON's or
    Python's are not looked at.

    Raises:
        DataError: naming the tool, and the parameter.
    """
    offered = {tool.name: tool for tool in tools}
    for call in calls:
        tool = offered.get(call.name)
        if tool is None:
            known = ", ".join(sorted(offered)) or "none"
            raise DataError(where, field, f"calls of the tools on offer ({known})", call.name)
        for name, value in call.parameters.items():
            if name not in tool.parameters:
                if not tool.open:
                    known = ", ".join(tool.parameters) or "none"
                    raise DataError(where, field, f"parameters that '{call.name}' has ({known})", name)
            elif (value is not None or name in tool.required) and (fault := wrong_type(value, tool.parameters[name])):
                expected, found = fault
                raise DataError(where, field, f"{expected} in '{name}' of '{call.name}', as its schema says", found)
        for name in tool.required:
            if name not in call.parameters:
                expected = f"the required parameter '{name}' of '{call.name}'"
                raise DataError(where, field, expected, dict(call.parameters))


def wrong_type(value: JsonValue, schema: JsonValue) -> tuple[str, JsonValue] | None:
    """What a schema expects and what is there instead; None where the value has the type.

    >>> wrong_type("5", {"type": "int"}), wrong_type(5.0, {"type": "integer"})
    (('an integer', '5'), None)
    >>> wrong_type([1, "a"], {"type": "array", "items": {"type": "number"}})
    ('a number', 'a')
    """
    if not isinstance(schema, Mapping):
        return None
    kinds = _kinds(schema.get("type"))
    if kinds and not (value is None and schema.get("nullable")) and not any(_KINDS[kind][1](value) for kind in kinds):
        return " or ".join(_KINDS[kind][0] for kind in kinds), value
    if isinstance(value, list):
        inner = [(item, schema.get("items")) for item in value]
    elif isinstance(value, Mapping) and isinstance(properties := schema.get("properties"), Mapping):
        inner = [(item, properties.get(key)) for key, item in value.items() if item is not None]
    else:
        return None
    return next((fault for item, about in inner if (fault := wrong_type(item, about))), None)


def with_json_types(schema: JsonValue) -> JsonValue:
    """A parameter's schema with JSON's names for its types, where they are others that are known.

    >>> with_json_types({"type": "List[int]", "items": {"type": "int"}}), with_json_types({"type": "date"})
    ({'type': 'array', 'items': {'type': 'integer'}}, {'type': 'date'})
    """
    if not isinstance(schema, Mapping):
        return schema
    changed = dict(schema)
    if kinds := _kinds(schema.get("type")):
        changed["type"] = kinds[0] if len(kinds) == 1 else list(dict.fromkeys(kinds))
    if "items" in schema:
        changed["items"] = with_json_types(schema["items"])
    if isinstance(properties := schema.get("properties"), Mapping):
        changed["properties"] = {key: with_json_types(about) for key, about in properties.items()}
    return changed


def _kinds(written: JsonValue) -> list[str]:
    """The JSON types that a schema's `type` names; none where it names another, which is not looked at.

    >>> _kinds(["string", "null"]), _kinds("float, optional"), _kinds("Union[List[str], int]"), _kinds("any")
    (['string', 'null'], ['number', 'null'], ['array', 'integer'], [])
    """
    if isinstance(written, list):
        found = [_kinds(one) for one in written]
        return list(chain.from_iterable(found)) if all(found) else []
    if not isinstance(written, str):
        return []
    text, optional = re.subn(r",?\s*optional$", "", written.strip().lower())
    parts, kinds = [text], []
    while parts:
        part = parts.pop(0)
        if len(inner := _alternatives(part)) > 1:
            parts = inner + parts
        elif wrapped := re.fullmatch(r"(optional|union)\[(.*)\]", part):
            parts.insert(0, wrapped[2])
            optional = optional or wrapped[1] == "optional"
        else:
            word, bracket, _ = part.partition("[")
            kind = "array" if part.endswith("[]") else _WORDS.get(word, word)
            if kind not in _KINDS or (bracket and kind not in ("array", "object")):
                return []
            kinds.append(kind)
    return [*kinds, "null"] if optional else kinds


def _alternatives(written: str) -> list[str]:
    """What stands between `,`, `|` and `or` outside of brackets.

    >>> _alternatives("dict[str, int] | int[] or str")
    ['dict[str, int]', 'int[]', 'str']
    """
    parts = [""]
    for index, piece in enumerate(re.split(r"(\s*[,|]\s*|\s+or\s+)", written)):
        if index % 2 and parts[-1].count("[") == parts[-1].count("]"):
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
