"""The official command line's own loop, run by our handler, sends the prompts of the in-process benchmark.

The package's client libraries are not installed with this project: what is absent of them is stubbed. The run with all
of them is in docs/evaluation.md.
"""

import builtins
import copy
import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import pytest
from transformers import AutoTokenizer

from src.data.rendering import PromptRenderer
from src.environments.bfcl.cases import CATEGORIES, GROUPS, Case, load_cases
from src.environments.bfcl.sandbox import Sandbox
from src.environments.bfcl.world import turn_messages
from src.environments.conversation import Answer, Turn
from src.protocol.dialogue import ChatPrompt, ToolCall
from src.wings.evaluation.bfcl.bfcl import CaseConversation
from src.wings.evaluation.bfcl.decoding import decode_calls
from src.wings.evaluation.bfcl.prompting import build_prompt
from tests.conftest import ROOT
from tests.environments.bfcl.gold import gold_turns, step_text

TINY = ROOT / "src/models/tiny"
ADAPTER = "src.wings.evaluation.bfcl.tools.official_cli"
CLIENTS = ("openai", "tenacity", "tree_sitter", "tree_sitter_java", "tree_sitter_javascript")
WORDINGS = {"rest": "official", "rest-toolrl-wording": "toolrl"}


def stubs() -> dict[str, ModuleType | MagicMock]:
    """Stand-ins for what is not installed."""
    made: dict[str, ModuleType | MagicMock] = {name: MagicMock() for name in CLIENTS if find_spec(name) is None}
    if find_spec("overrides") is None:
        made["overrides"] = ModuleType("overrides")
        made["overrides"].__dict__.update(EnforceOverrides=object, final=lambda f: f, override=lambda f: f)
    if find_spec("anthropic") is None:
        config = made["bfcl_eval.constants.model_config"] = ModuleType("model_config")
        config.__dict__.update(MODEL_CONFIG_MAPPING={}, ModelConfig=SimpleNamespace)
    return made


@contextmanager
def fresh_modules() -> Iterator[None]:
    """The package as if nobody had imported it, and as it was afterwards."""
    before = dict(sys.modules)
    for name in [name for name in sys.modules if name.startswith("bfcl_eval") or name == ADAPTER]:
        del sys.modules[name]
    yield
    sys.modules.clear()
    sys.modules.update(before)


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, fresh_modules():
        patch.setenv("BFCL_PROJECT_ROOT", str(tmp_path_factory.mktemp("bfcl")))
        sys.modules.update(stubs())
        adapter = importlib.import_module(ADAPTER)
        adapter.register()
        yield adapter


class Server:
    """Answers in the given order, and keeps what it was asked."""

    def __init__(self, answers: list[str]) -> None:
        self.requests: list[dict] = []
        self.completions = self
        self._answers = iter(answers)

    def create(self, **request):
        self.requests.append(request)
        usage = SimpleNamespace(prompt_tokens=1, completion_tokens=1)
        return SimpleNamespace(choices=[SimpleNamespace(text=next(self._answers))], usage=usage)


def handler_with(cli, model: str, answers: list[str], folder: Path = TINY):
    handler = cli.MODEL_CONFIG_MAPPING[model].model_handler(model, temperature=0)
    handler.tokenizer = AutoTokenizer.from_pretrained(folder)
    handler.model_path_or_id, handler.max_context_length = str(folder), 1_000_000
    handler.client = Server(answers)
    return handler


def official_entry(case: Case) -> dict:
    """The entry as the package's `generate` hands it to a handler."""
    from bfcl_eval._llm_response_generation import process_multi_turn_test_case

    (entry,) = process_multi_turn_test_case([copy.deepcopy(case.entry)])
    return entry


def rendered(prompts: list[ChatPrompt]) -> list[str]:
    renderer = PromptRenderer(AutoTokenizer.from_pretrained(TINY))
    return [renderer.template.prompt_text(prompt) for prompt in prompts]


def test_without_its_dependencies_the_error_says_what_to_install(monkeypatch, tmp_path):
    if find_spec("anthropic") is not None:
        pytest.skip("bfcl-eval is installed with all its dependencies")
    monkeypatch.setenv("BFCL_PROJECT_ROOT", str(tmp_path))
    with fresh_modules(), pytest.raises(ImportError, match=r"another virtual environment.*pip install bfcl-eval==2025"):
        importlib.import_module(ADAPTER)


def test_both_wordings_are_registered(cli):
    for name, wording in WORDINGS.items():
        config = cli.MODEL_CONFIG_MAPPING[name]
        assert config.is_fc_model is False
        assert config.model_handler(name, temperature=0)._wording == wording
        # the package reads "_" as "/", and makes Python identifiers of the rest
        assert "_" not in name and name.replace("-", "_").isidentifier()


def test_another_version_is_refused(cli, monkeypatch):
    monkeypatch.setattr(cli, "version", lambda package: "2026.1.1")
    with pytest.raises(RuntimeError, match=r"Expected bfcl-eval 2025\.6\.14, found 2026\.1\.1"):
        cli.register()


@pytest.mark.parametrize("model", WORDINGS)
def test_single_turn_prompts_are_the_benchmarks(cli, model):
    cases = list(chain.from_iterable(load_cases(category)[:3] for category in GROUPS["single_turn"]))
    cases += [c for c in load_cases("live_simple") if c.question[0][0]["role"] == "system"][:2]
    handler = handler_with(cli, model, ["no call"] * len(cases))
    for case in cases:
        assert handler.inference_single_turn_prompting(official_entry(case), False)[0] == "no call"
    expected = [build_prompt(case, [Turn(turn_messages(case, 0))], WORDINGS[model]) for case in cases]
    assert [request["prompt"] for request in handler.client.requests] == rendered(expected)
    assert all(request["extra_body"] == {"skip_special_tokens": False} for request in handler.client.requests)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as sandbox:
        yield sandbox


def in_process(case: Case, answers: list[str], sandbox, wording) -> tuple[list[ChatPrompt], CaseConversation]:
    prompts = []
    conversation = CaseConversation(case, sandbox, wording)
    for answer in answers:
        prompts.append(conversation.prompt())
        if conversation.take(Answer.of(answer)):
            return prompts, conversation
    raise AssertionError("too few answers")


REFUSED = [
    [ToolCall("pwd", {}), ToolCall("fill_fuel_tank", {"fuelAmount": 1}), ToolCall("os.system", {"command": "ls"})],
    [ToolCall("__import__('os').system", {"command": "ls"})],
    [ToolCall("ls", {"a b": 1}), ToolCall("nothing", {"x": "y" * 100_001})],
    [ToolCall("echo", {"content": "\ud800'); exit() #"})],
]
"""Steps with calls that no case allows, that this case lacks, and that are too large."""


@pytest.mark.parametrize(
    ("category", "model"),
    [
        *((category, "rest") for category in GROUPS["multi_turn"]),
        *((category, model) for category in ("multi_turn_miss_func",) for model in WORDINGS if model != "rest"),
    ],
)
def test_multi_turn_prompts_are_the_benchmarks(cli, sandbox, category, model):
    case = load_cases(category)[0]
    turns = gold_turns(case)
    turns[-1] = [*turns[-1], *REFUSED]
    answers = [step_text(calls) for turn in turns for calls in [*turn, []]]
    expected, conversation = in_process(case, answers, sandbox, WORDINGS[model])
    handler = handler_with(cli, model, answers)
    result, _ = handler.inference_multi_turn_prompting(official_entry(case), False, True)
    assert result == [[step.text for step in turn.steps] for turn in conversation.turns]
    assert [request["prompt"] for request in handler.client.requests] == rendered(expected)


def test_a_case_is_abandoned_at_the_same_step(cli, sandbox):
    case = load_cases("multi_turn_base")[0]
    answers = [step_text([ToolCall("pwd", {})])] * 40
    _, conversation = in_process(case, answers, sandbox, "official")
    result, _ = handler_with(cli, "rest", answers).inference_multi_turn_prompting(official_entry(case), False, True)
    assert [len(turn) for turn in result] == [len(turn.steps) for turn in conversation.turns] == [21]


def test_calls_for_the_checkers(cli):
    handler = handler_with(cli, "rest", [])
    text = step_text(
        [ToolCall("cd", {"folder": "a'b"}), ToolCall("exit", {}), ToolCall("cd", {"folder": "x" * 200_000})]
    )
    assert handler.decode_ast(text) == [{"cd": {"folder": "a'b"}}, {"exit": {}}, {"": {}}]
    assert handler.decode_execute(text) == ['cd(folder="a\'b")', "call_not_allowed()", "call_not_allowed()"]
    assert handler.decode_ast("no call") == handler.decode_execute("no call") == []


def test_a_method_that_a_case_lacks_names_nothing_else(cli):
    """All tools' methods may be evaluated for any case: none of their names means something to the executor."""
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils

    names = cli._methods(*multi_turn_utils.CLASS_FILE_PATH_MAPPING)
    assert len(names) > 100
    assert not names & {*vars(builtins), *vars(multi_turn_utils)} and "call_not_allowed" not in names


@pytest.fixture
def thinking_model(tmp_path) -> Path:
    """A tokenizer that begins every text with a token, as its template does; the template opens the thought."""
    folder = Path(shutil.copytree(TINY, tmp_path / "thinking"))
    template = (folder / "chat_template.jinja").read_text()
    opened = "<|im_start|>assistant\n{% if loud %}LOUD {% endif %}<think>\n"
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + template.replace("<|im_start|>assistant\n", opened))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (first,) = [token["id"] for token in tokenizer["added_tokens"] if token["content"] == "<|endoftext|>"]
    special = {"id": "<|endoftext|>", "ids": [first], "tokens": ["<|endoftext|>"]}
    sequence = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": sequence,
        "pair": [*sequence, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": special},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": "<|endoftext|>"}))
    return folder


def test_a_server_makes_the_benchmarks_ids_of_the_text(cli, thinking_model, monkeypatch):
    monkeypatch.setenv("CHAT_TEMPLATE_KWARGS", '{"loud": true}')
    case = load_cases("simple")[0]
    handler = handler_with(cli, "rest", ["Hm. </think>"], thinking_model)
    result, _ = handler.inference_single_turn_prompting(official_entry(case), False)
    assert result == "<think>\nHm. </think>"  # what the template wrote is part of the response
    (request,) = handler.client.requests
    assert request["prompt"].startswith("<|im_start|>system") and request["prompt"].endswith("LOUD <think>\n")
    renderer = PromptRenderer(handler.tokenizer, chat_template_kwargs={"loud": True})
    prompt = build_prompt(case, [Turn(turn_messages(case, 0))], "official")
    assert handler.tokenizer(request["prompt"])["input_ids"] == renderer.encode_chat(prompt).tolist()


@pytest.mark.parametrize("given", ["{", "[1]"])
def test_template_settings_that_are_no_object_are_refused(cli, monkeypatch, given):
    monkeypatch.setenv("CHAT_TEMPLATE_KWARGS", given)
    with pytest.raises(ValueError, match="CHAT_TEMPLATE_KWARGS: expected a JSON object"):
        handler_with(cli, "rest", ["x"])._renderer  # noqa: B018


def test_every_category_is_known_to_the_package(cli):
    from bfcl_eval.constants.category_mapping import TEST_COLLECTION_MAPPING

    assert set(TEST_COLLECTION_MAPPING["all"]) == set(CATEGORIES)


def test_decoding_is_the_benchmarks(cli):
    handler = handler_with(cli, "rest", [])
    text = '<tool_call>\n{"name": "a", "parameters": {"x": NaN}}\nno call\n{"name": "None", "parameters": {}}\n'
    assert [name for call in handler.decode_ast(text) for name in call] == [call.name for call in decode_calls(text)]
