"""The official checkers and tool backends of `bfcl-eval`, called as its own runner calls them.

Imported in the worker process only (and in tests' own processes): importing it puts a stand-in for the package's
`model_config`, which would import every vendor's API client, into `sys.modules`, and shadows the `eval` of its
executor. Every function takes a request, as `sandbox.py` sends it, and returns the answer.

Sources: `bfcl_eval.eval_checker.eval_runner.ast_file_runner` and `multi_turn_runner`, version 2025.6.14.
"""

from __future__ import annotations

import decimal
import importlib
import inspect
import marshal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import mpmath

from src.environments.bfcl.calls import REFUSED_CALL, call_string, refusal
from src.protocol.dialogue import ToolCall

MODEL_NAME = "rest"
"""Part of the names of tool instances, which can show in results (see `calls.call_string`): always the same one."""

_model_config = ModuleType("bfcl_eval.constants.model_config")
_model_config.__dict__["MODEL_CONFIG_MAPPING"] = {MODEL_NAME: SimpleNamespace(underscore_to_dot=False)}
sys.modules[_model_config.__name__] = _model_config

from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker  # noqa: E402
from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils  # noqa: E402
from bfcl_eval.eval_checker.multi_turn_eval.func_source_code import long_context  # noqa: E402
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker  # noqa: E402

_BACKENDS = {
    name: getattr(importlib.import_module(module), name)
    for name, module in multi_turn_utils.CLASS_FILE_PATH_MAPPING.items()
}
_SHARED = [value for name, value in vars(long_context).items() if name.isupper() and isinstance(value, dict | list)]
"""What tools of all long-context entries share. Some change it: a purchase lowers the balance of a shared card."""
_UNTOUCHED = [(deepcopy(value), marshal.dumps(value, 2)) for value in _SHARED]

Request = Mapping[str, Any]
Answer = dict[str, Any]


class OutOfMemoryError(BaseException):
    """A tool ran out of memory. No `Exception`: the official executor would make it a result and go on."""


def _evaluate(call: str) -> Any:
    """`eval` of the official executor: tool instances are the only names there are, builtins included."""
    try:
        return eval(call, {"__builtins__": {}, **_instances()})
    except MemoryError as error:
        raise OutOfMemoryError from error


multi_turn_utils.eval = _evaluate


@contextmanager
def fresh_state() -> Iterator[None]:
    """Whatever runs inside finds the state of a fresh process, and leaves nothing behind, also when it fails.

    The official runner keeps tool instances, constants that tools changed, and the precision of numbers from one entry
    to the next.
    """
    decimal.setcontext(decimal.Context())
    mpmath.mp.dps = 15
    try:
        yield
    finally:
        for name in _instances():
            delattr(multi_turn_utils, name)
        for value, (untouched, form) in zip(_SHARED, _UNTOUCHED, strict=True):
            # Equality does not do for dicts: 5000 == 5000.0, and tools print them. No tool computes with the lists.
            if value == untouched and (isinstance(value, list) or marshal.dumps(value, 2) == form):
                continue
            value.clear()
            if isinstance(value, dict):
                value.update(deepcopy(untouched))
            else:
                value.extend(deepcopy(untouched))


def _instances() -> dict[str, Any]:
    """The tool instances, which the official executor keeps in its module's globals."""
    return {name: value for name, value in vars(multi_turn_utils).items() if name.endswith("_instance")}


def execute(request: Request) -> Answer:
    """Replay an entry's steps from its initial state: `results` of the last."""
    allowed = _methods(tuple(request["involved_classes"]))
    results: list[str] = []
    calls: list[ToolCall] = []
    for step in request["steps"]:
        calls = _calls(step)
        results, _ = multi_turn_utils.execute_multi_turn_func_call(
            func_call_list=[call_string(call, allowed) or REFUSED_CALL for call in calls],
            initial_config=request["initial_config"],
            involved_classes=request["involved_classes"],
            model_name=MODEL_NAME,
            test_entry_id=request["id"],
            long_context="long_context" in request["id"] or "composite" in request["id"],
            is_evaL_run=False,
        )
    return {
        "results": [
            result if call_string(call, allowed) else refusal(call, allowed)
            for call, result in zip(calls, results, strict=True)
        ]
    }


def check_single_turn(request: Request) -> Answer:
    """The verdict of `ast_checker`."""
    calls = _calls(request["calls"])
    return _verdict(
        lambda: ast_checker(
            request["function"],
            [{call.name: dict(call.parameters)} for call in calls],
            request["possible_answer"],
            request["language"],
            request["category"],
            MODEL_NAME,
        )
    )


def check_multi_turn(request: Request) -> Answer:
    """The verdict of `multi_turn_checker`; steps without a call do not count, as in the official runner."""
    allowed = _methods(tuple(request["involved_classes"]))
    turns = [
        [[call_string(call, allowed) or REFUSED_CALL for call in _calls(step)] for step in turn if step]
        for turn in request["turns"]
    ]
    category = request["id"].rsplit("_", 1)[0]
    return _verdict(lambda: multi_turn_checker(turns, request["ground_truth"], request, category, MODEL_NAME))


def _verdict(check: Callable[[], Mapping[str, Any]]) -> Answer:
    try:
        result = check()
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the checkers raise anything on a model's values, which then are wrong
        return {"passed": False, "error_type": "checker_error", "error": f"{type(error).__name__}: {error}"}
    if result["valid"]:
        return {"passed": True}
    reason = result["error"] if "error" in result else result["error_message"]
    text = "\n".join(map(str, reason)) if isinstance(reason, list) else str(reason)
    return {"passed": False, "error_type": result["error_type"], "error": text}


def _calls(pairs: Iterable[tuple[str, dict[str, Any]]]) -> list[ToolCall]:
    return [ToolCall(name, parameters) for name, parameters in pairs]


@cache
def _methods(class_names: tuple[str, ...]) -> frozenset[str]:
    """Public methods of tool classes: what the official executor can resolve."""
    return frozenset(
        name
        for class_name in class_names
        for name, _ in inspect.getmembers(_BACKENDS[class_name], inspect.isfunction)
        if not name.startswith("_")
    )
