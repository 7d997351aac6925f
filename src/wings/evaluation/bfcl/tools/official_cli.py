"""The official BFCL command line for models that speak the output protocol: a cross-check of the in-process benchmark.

Registers two model names with `bfcl-eval`, one a turn wording, and hands over to its own command line:

    python -m src.wings.evaluation.bfcl.tools.official_cli generate --model rest --local-model-path FOLDER …
    python -m src.wings.evaluation.bfcl.tools.official_cli evaluate --model rest …

Prompts, decoding and the rebuilding of calls are those of the in-process benchmark; the loop, the execution, the
checkers and the scores are the package's. It runs in an environment of its own, with the package's old pins and without
those of this project (see docs/evaluation.md): nothing here may import torch, lightning or hydra.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from src.data.rendering import PromptRenderer
from src.environments.bfcl.calls import REFUSED_CALL, bounded, call_string, refusal, well_formed
from src.environments.bfcl.cases import VERSION, Case, Json
from src.environments.conversation import Step, Turn
from src.protocol.dialogue import ToolCall
from src.wings.evaluation.bfcl.decoding import decode_calls
from src.wings.evaluation.bfcl.prompting import TurnWording, build_prompt

INSTALL = f"pip install bfcl-eval=={VERSION} transformers"

# Read when the package is imported; without it, results go into the installation.
os.environ.setdefault("BFCL_PROJECT_ROOT", str(Path(__file__).parents[5] / "logs" / "bfcl_official"))

try:
    from bfcl_eval.constants.model_config import MODEL_CONFIG_MAPPING, ModelConfig
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils import CLASS_FILE_PATH_MAPPING
    from bfcl_eval.model_handler.local_inference.base_oss_handler import OSSHandler
    from overrides import override
except ImportError as error:
    raise ImportError(
        f"The official BFCL command line needs bfcl-eval with all its dependencies, found none of '{error.name}'. They "
        f"do not go together with this project's: make another virtual environment and run there: {INSTALL}"
    ) from error

MODELS: Mapping[str, TurnWording] = {"rest": "official", "rest-toolrl-wording": "toolrl"}
"""Turn wording by model name. A name may hold no underscore, which the package reads as a slash."""

TEMPLATE_VARIABLE = "CHAT_TEMPLATE_KWARGS"
"""Environment variable with the chat template's keywords as JSON: the run's `prompt.chat_template_kwargs`."""


class ProtocolHandler(OSSHandler):
    """The output protocol for the package's generation and evaluation.

    Signatures are the package's, down to the bare `dict`, which it checks when this class is made.
    """

    skip_special_tokens = False  # asks the server for the text that was sampled, whatever the tokenizer calls special

    def __init__(self, model_name: str, temperature: float, wording: TurnWording) -> None:
        """Called by the package, but for the wording."""
        super().__init__(model_name, temperature)
        self._wording = wording

    @override
    def decode_ast(self, result: str, language: str = "Python") -> list[Json]:
        """The calls of an answer for the single-turn checkers; Java and JavaScript values stay source literals."""
        return [{call.name: dict(call.parameters)} for call in _calls(result)]

    @override
    def decode_execute(self, result: str) -> list[str]:
        """The calls of an answer as source text that the package may evaluate; see `calls.call_string`.

        The package does not say which entry it is about, so the methods of all tools are allowed here. That a case
        lacks one shows when it is evaluated: its name is not defined.
        """
        return [call_string(call, _methods(*CLASS_FILE_PATH_MAPPING)) or REFUSED_CALL for call in _calls(result)]

    @override
    def _pre_query_processing_prompting(self, test_entry: dict) -> dict:
        category = test_entry["id"].rsplit("_", 1)[0]
        return {"function": Case(test_entry["id"], category, test_entry, test_entry["function"]), "message": []}

    @override
    def _format_prompt(self, messages: list[Turn], function: Case) -> str:
        """The prompt as text. What the package hands through as messages and functions are turns and the case."""
        text = self._renderer.chat_text(build_prompt(function, messages, self._wording))
        first = self.tokenizer.bos_token  # a server adds it where the tokenizer does, whether it is there or not
        return text.removeprefix(first) if first and self._adds_first_token else text

    @override
    def _parse_query_response_prompting(self, api_response: Any) -> dict:
        data = super()._parse_query_response_prompting(api_response)
        return {**data, "model_responses": self._renderer.response_prefix + data["model_responses"]}

    @override
    def add_first_turn_message_prompting(self, inference_data: dict, first_turn_message: list[dict]) -> dict:
        """Open the first turn."""
        inference_data["message"].append(Turn(first_turn_message))
        return inference_data

    @override
    def _add_next_turn_user_message_prompting(self, inference_data: dict, user_message: list[dict]) -> dict:
        inference_data["message"].append(Turn(user_message))
        return inference_data

    @override
    def _add_assistant_message_prompting(self, inference_data: dict, model_response_data: dict) -> dict:
        inference_data["message"][-1].steps.append(Step(model_response_data["model_responses"]))
        return inference_data

    @override
    def _add_execution_results_prompting(
        self, inference_data: dict, execution_results: list[str], model_response_data: dict
    ) -> dict:
        steps = inference_data["message"][-1].steps
        allowed = _methods(*inference_data["function"].entry["involved_classes"])
        calls = decode_calls(steps[-1].text)
        results = tuple(
            well_formed(result) if call_string(call, allowed) else refusal(bounded(call), allowed)
            for call, result in zip(calls, execution_results, strict=True)
        )
        steps[-1] = replace(steps[-1], calls=calls, results=results)
        return inference_data

    @cached_property
    def _renderer(self) -> PromptRenderer:
        """The package sets `tokenizer` after it has made the handler."""
        return PromptRenderer(self.tokenizer, chat_template_kwargs=_template_settings())

    @cached_property
    def _adds_first_token(self) -> bool:
        return self.tokenizer.bos_token_id in self.tokenizer("")["input_ids"]


def register() -> None:
    """Make `MODELS` known to the package.

    Raises:
        RuntimeError: another version of the package, whose gold answers and formulas differ.
    """
    if (found := version("bfcl-eval")) != VERSION:
        raise RuntimeError(f"Expected bfcl-eval {VERSION}, found {found}. Run: {INSTALL}")
    for name, wording in MODELS.items():
        MODEL_CONFIG_MAPPING[name] = ModelConfig(
            model_name=name,
            display_name=name,
            url="",
            org="",
            license="",
            model_handler=partial(ProtocolHandler, wording=wording),
            is_fc_model=False,
        )


def main() -> None:
    """Register, and hand over to the package's command line."""
    register()
    from bfcl_eval.__main__ import cli

    cli()


def _calls(text: str) -> list[ToolCall]:
    return [bounded(call) for call in decode_calls(text)]


@cache
def _methods(*class_names: str) -> frozenset[str]:
    """Public methods of tool classes."""
    classes = [getattr(importlib.import_module(CLASS_FILE_PATH_MAPPING[name]), name) for name in class_names]
    members = (name for backend in classes for name, _ in inspect.getmembers(backend, inspect.isfunction))
    return frozenset(name for name in members if not name.startswith("_"))


def _template_settings() -> dict[str, Any]:
    given = os.environ.get(TEMPLATE_VARIABLE, "{}")
    try:
        settings = json.loads(given)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(
            f'{TEMPLATE_VARIABLE}: expected a JSON object, e.g. {{"enable_thinking": true}}, found {given!r}.'
        )
    return settings


if __name__ == "__main__":
    main()
