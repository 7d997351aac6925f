"""The official runner in a process of its own: `official_runner.py REQUESTS ANSWERS`, both JSON files.

Only the package's `model_config` is replaced, which imports every vendor's API client. The handler reads the output
protocol from text and was written from ToolRL's description of it, not from the project's decoding. Imports nothing of
the project.
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

MODEL = "official"


class Handler:
    """Decodes responses in the output protocol."""

    def decode_ast(self, text: str, language: str = "Python") -> list[dict[str, Any]]:
        return [{call["name"]: call["parameters"]} for call in self._calls(text)]

    def decode_execute(self, text: str) -> list[str]:
        return [
            "{}({})".format(call["name"], ", ".join(f"{k}={v!r}" for k, v in call["parameters"].items()))
            for call in self._calls(text)
        ]

    def _calls(self, text: str) -> list[dict[str, Any]]:
        calls = []
        blocks = re.split("<tool_call>", text)[1:]
        for line in re.split("</tool_call>", blocks[-1])[0].splitlines() if blocks else []:
            try:
                call = json.loads(line)
                if call["name"].strip().lower() != "none" and "parameters" in call:
                    calls.append(call)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
        return calls


def main(requests: Path, answers: Path) -> None:
    model_config = ModuleType("bfcl_eval.constants.model_config")
    model_config.MODEL_CONFIG_MAPPING = {MODEL: SimpleNamespace(underscore_to_dot=False)}
    sys.modules[model_config.__name__] = model_config
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BFCL_PROJECT_ROOT"] = folder
        from bfcl_eval.eval_checker import eval_runner
        from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils

        judge = Judge(eval_runner, Path(folder))
        done = []
        for number, request in enumerate(json.loads(requests.read_text())):
            if request["kind"] == "verdict":
                done.append(judge(number, **request["arguments"]))
            else:
                done.append(execute(multi_turn_utils.execute_multi_turn_func_call, **request["arguments"]))
    answers.write_text(json.dumps(done))


class Judge:
    """One output through the runner of its category: whether it passed, and the error type in the score file."""

    def __init__(self, eval_runner: Any, folder: Path) -> None:
        self.runner = eval_runner
        self.folder = folder

    def __call__(self, number: int, category: str, entry: Any, answer: Any, output: Any) -> tuple[bool, str]:
        # The runner keeps tool instances by id for as long as it lives: each output gets an id of its own.
        entry = entry | {"id": f"{category}_{100_000 + number}"}
        results, golds = [{"id": entry["id"], "result": output}], [{"id": entry["id"], "ground_truth": answer}]
        language = {"java": "Java", "javascript": "JavaScript"}.get(category, "Python")
        handler, runner = Handler(), self.runner
        try:
            if "relevance" in category:
                runner.relevance_file_runner(handler, results, [entry], MODEL, category, self.folder)
            elif "multi_turn" in category:
                runner.multi_turn_runner(handler, results, [entry], golds, MODEL, category, self.folder)
            else:
                runner.ast_file_runner(handler, results, [entry], golds, language, category, MODEL, self.folder)
        except Exception as error:  # noqa: BLE001 - the checkers raise anything on a model's values
            return False, f"crash: {error!r}"
        (score_file,) = (self.folder / MODEL).glob(f"*_{category}_score.json")
        summary, *failures = map(json.loads, score_file.read_text().splitlines())
        if summary["accuracy"] == 1:
            return True, ""
        (failure,) = failures
        return False, failure["error_type"] if "error_type" in failure else failure["error"]["error_type"]


def execute(run: Callable[..., Any], entry: Any, steps: list[list[str]], model_name: str) -> list[list[str]]:
    """The results of every step of an entry."""
    return [
        run(
            func_call_list=step,
            initial_config=entry["initial_config"],
            involved_classes=entry["involved_classes"],
            model_name=model_name,
            test_entry_id=entry["id"],
            long_context="long_context" in entry["id"],
        )[0]
        for step in steps
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
