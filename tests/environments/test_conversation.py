"""The loop with answers that are written down; the benchmarks' and the chat's tests play it with their worlds."""

from collections.abc import Iterator, Sequence

from src.data.rendering import compact_prompt
from src.environments.conversation import Answer, Conversation, Turn, play
from src.environments.protocol import LimitError
from src.environments.synthetic import SyntheticWorld
from src.protocol.dialogue import ChatPrompt, Message, ToolCall

CALL = Answer.of('<tool_call>\n{"name": "ls", "parameters": {}}\n</tool_call>')
TALK = Answer.of("<response> Done. </response>")


class Turns(Conversation):
    """A user who says the same thing so many times."""

    def __init__(self, name: str, turns: int, world: SyntheticWorld | None = None) -> None:
        super().__init__(world or SyntheticWorld([]), step_limit=2)
        self.name, self._left = name, turns
        self.next_turn()

    def prompt(self) -> ChatPrompt:
        return compact_prompt(self.world.tools, self.history())

    def next_turn(self) -> bool:
        self._left -= 1
        if self._left >= 0:
            self.turns.append(Turn.of_user("Go on."))
        return self._left >= 0


class Slow(SyntheticWorld):
    """Runs nothing in time."""

    def run(self, calls: Sequence[ToolCall]) -> list[str]:
        raise LimitError("time_limit")


def test_the_policy_sees_what_its_calls_returned():
    conversation = Turns("a", 2)
    assert [conversation.take(answer) for answer in (CALL, TALK, TALK)] == [False, False, True]
    user, done = Message("user", "Go on."), Message("assistant", "Done.")
    seen = Message("observation", '{"error": "no tool ls"}')
    called = Message("assistant", calls=(ToolCall("ls", {}),))
    assert conversation.history() == (user, called, seen, done, user, done)
    assert "<obs> {" in conversation.prompt().user and conversation.error_type == ""


def test_a_turn_with_too_many_steps_ends_the_conversation():
    conversation = Turns("a", 2)
    assert [conversation.take(CALL) for _ in range(3)] == [False, False, True]
    assert len(conversation.turns) == 1


def test_a_step_over_a_limit_was_not_observed():
    conversation = Turns("a", 2, Slow([]))
    assert conversation.take(CALL) and conversation.error_type == "time_limit"
    assert [message.role for message in conversation.history()] == ["user", "assistant"]


def test_conversations_play_in_lock_step_and_leave_when_they_are_done():
    lengths = {"a": 1, "b": 3, "c": 2, "d": 1}
    asked: list[int] = []

    def generate(prompts: Sequence[ChatPrompt]) -> Iterator[tuple[int, Answer]]:
        asked.append(len(prompts))
        yield from ((index, TALK) for index in range(len(prompts)))

    conversations = (Turns(name, turns) for name, turns in lengths.items())
    finished = [(done.name, len(asked)) for done in play(conversations, generate, concurrent=3)]
    # step 1: a b c, and a is done; step 2: b c d, and c and d are; step 3: b
    assert finished == [("a", 1), ("c", 2), ("d", 2), ("b", 3)]
    assert asked == [3, 3, 1]
