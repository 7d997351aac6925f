import pytest

from src.data.templates.published import published_system
from src.environments.bfcl.cases import Case
from src.environments.bfcl.world import turn_messages
from src.environments.conversation import Step, Turn
from src.protocol.dialogue import ToolCall, ToolSpec
from src.wings.evaluation.bfcl.prompting import build_prompt

WEATHER = {
    "name": "weather.now",
    "description": "Weather of a city.",
    "parameters": {
        "type": "dict",
        "properties": {"city": {"type": "string", "description": "Its name, e.g. Tromsø."}},
        "required": ["city"],
    },
}
SYSTEM = published_system(
    [
        ToolSpec.of(
            "weather.now",
            "Weather of a city. Note that the provided function is in Python 3 syntax.",
            {"city": {"type": "string", "description": "Its name, e.g. Tromsø."}},
        )
    ]
)
LIVE = Case(
    "live_simple_0-0-0",
    "live_simple",
    {
        "id": "live_simple_0-0-0",
        "question": [
            [
                {"role": "system", "content": "Be brief. "},
                {"role": "user", "content": " Hi!\n"},
                {"role": "assistant", "content": "Hello. "},
                {"role": "user", "content": "Is it raining in Oslo?"},
            ]
        ],
    },
    [WEATHER],
)


def test_single_turn_official():
    prompt = build_prompt(LIVE, [Turn(turn_messages(LIVE, 0))], "official")
    assert prompt.system == SYSTEM + "\n\nBe brief. "
    assert prompt.user == (
        "**Dialogue Records History**\n"
        "<user>  Hi!\n </user>\n"
        "\n"
        "<response> Hello.  </response>\n"
        "\n"
        "<user> Is it raining in Oslo? </user>"
    )


def test_single_turn_toolrl():
    prompt = build_prompt(LIVE, [Turn(turn_messages(LIVE, 0))], "toolrl")
    suffix = (
        "If there's no appropriate tools to apply or required parameters are missing, please directly inform me in "
        "your response without any tool call, or call the tool with the name as 'None'. Otherwise, you should use one "
        "or more necessary tool calls to complete the given task in this turn."
    )
    assert prompt.system == SYSTEM + "\n"
    assert prompt.user == (
        "**Dialogue Records History**\n"
        f"<user> Hi!\n{suffix} </user>\n"
        "\n"
        "Hello.\n"
        f"<user> Is it raining in Oslo?\n{suffix} </user>"
    )


FILES = Case(
    "multi_turn_base_0",
    "multi_turn_base",
    {
        "id": "multi_turn_base_0",
        "question": [[{"role": "user", "content": "Go to docs, list it."}], [{"role": "user", "content": "Go on. "}]],
    },
    [WEATHER],
)
CALLS = '<think> Two. </think>\n<tool_call>\n{"name": "cd", "parameters": {"folder": "docs"}}\n…\n</tool_call>'
STEP = Step(
    CALLS + "\n",
    (ToolCall("cd", {"folder": "docs"}), ToolCall("ls", {"a": True, "limit": None})),
    ('{"current_working_directory": "docs"}', "Error during execution: ü"),
)


def test_multi_turn_official():
    turns = [Turn(FILES.question[0], [STEP, Step("<response> Done. </response>")]), Turn(FILES.question[1], [STEP])]
    results = (
        '<obs> [{"name": "cd", "results": {"current_working_directory": "docs"}}, '
        '{"name": "ls", "results": "Error during execution: \\u00fc"}] </obs>'
    )
    prompt = build_prompt(FILES, turns, "official")
    assert prompt.system == SYSTEM
    assert prompt.user == (
        "**Dialogue Records History**\n"
        "<user> Go to docs, list it. </user>\n"
        "\n"
        f"{CALLS}\n"
        f"{results}\n"
        "\n"
        "<response> Done. </response>\n"
        "\n"
        "<user> Go on.  </user>\n"
        "\n"
        f"{CALLS}\n"
        f"{results}"
    )


def test_multi_turn_toolrl():
    turns = [Turn(FILES.question[0], [STEP, Step("<response> Done. </response>")]), Turn(FILES.question[1], [STEP])]
    suffix = (
        "If there's no appropriate tools to apply or required parameters are missing, please directly inform me in "
        "your response without any tool call, or call the tool with the name as 'None'. Otherwise, you should use one "
        "or more necessary tool calls to complete the given task in this turn."
    )
    results = (
        "<obs> You have made the tool call cd(folder='docs'). Execution returns: "
        '{"current_working_directory": "docs"} </obs>\n'
        "<obs> You have made the tool call ls(a=True, limit=None). Execution returns: "
        "Error during execution: ü </obs>\n"
    )
    prompt = build_prompt(FILES, turns, "toolrl")
    assert prompt.user == (
        "**Dialogue Records History**\n"
        f"<user> Go to docs, list it.\n{suffix} </user>\n"
        "\n"
        f"{CALLS}\n"
        f"{results}"
        "\n"
        "<response> Done. </response>\n"
        f"<user> Go on.\n{suffix} </user>\n"
        "\n"
        f"{CALLS}\n"
        f"{results}"
        "\n"
        "<user> If you think you have completed the current task, or the task cannot be finished, please respond "
        "directly without additional tool calls. If you encounter an error during tool execution or the task remains "
        "unfinished, retry with the one or more necessary tool calls according to your thought and plan until "
        "completion. Based on the tool execution feedback, reflect on if understanding or selectioin of tool is wrong, "
        "what tool calling step is missing, and how to achieve the task goal from now on. </user>"
    )
    ended = build_prompt(FILES, turns[:1], "toolrl").user
    assert ended.endswith("<response> Done. </response>")  # the retry message stands after results only


def test_an_empty_answer_leaves_no_record():
    turns = [Turn(FILES.question[0], [Step(" \n")]), Turn(FILES.question[1])]
    assert "list it. </user>\n\n<user> Go on." in build_prompt(FILES, turns, "official").user


@pytest.mark.parametrize("wording", ["official", "toolrl"])
def test_what_no_tokenizer_takes_is_no_part_of_a_prompt(wording):
    step = Step("<tool_call> …", (ToolCall("\ud800", {"x": "\udfff"}),), ("\ud800",))
    build_prompt(FILES, [Turn(FILES.question[0], [step])], wording).user.encode("utf-8")
