"""The prompt: dialogue steps to chat messages to token ids, and targets to protocol text.

Three layouts: `published` is the one of the paper's training data, byte for byte; `compact` carries the same
information in few tokens, for the tiny policy; `native` is the chat template's own, with its tools and its calls.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from src.data.templates.chat_template import ChatTemplate
from src.data.templates.native import NativeTemplate
from src.data.templates.published import published_prompt, structured
from src.errors import ConfigError
from src.protocol.dialogue import (
    ChatPrompt,
    DataError,
    Message,
    ToolSpec,
    TurnExample,
)
from src.protocol.formats.known import REST
from src.protocol.formats.rest import step_text
from src.protocol.output_format import OutputFormat, Reading
from src.runs.token_cache import TokenCache

if TYPE_CHECKING:  # prompt texts are also wanted where neither is installed (bfcl-eval's own environment)
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Layout = Literal["published", "compact", "native"]


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    r"""A prompt ready to sample from.

    Attributes:
        prompt_ids: int64 [P].
        response_prefix: the part of the response that the chat template already wrote at the end of the prompt, e.g.
            `<think>\n` for thinking templates; empty for most. Format scoring and regions count it.
        example: what was rendered.
        format: in which it is answered.
    """

    prompt_ids: Tensor
    response_prefix: str
    example: TurnExample
    format: OutputFormat = REST

    @property
    def reading(self) -> Reading:
        """How its completions are read."""
        return Reading(self.format, self.response_prefix, self.example.tools)


def compact_prompt(tools: Sequence[ToolSpec], history: Sequence[Message], escaped: Collection[str] = ()) -> ChatPrompt:
    """The same information without instructions, descriptions and thoughts: tool signatures and bare records.

    >>> tool = ToolSpec.of("get_weather", "Weather.", {"city": {}, "day": {}})
    >>> compact_prompt([tool], [Message("user", "Sun in Oslo?")])
    ChatPrompt(system='get_weather(city,day)', user='<user> Sun in Oslo? </user>')
    """
    listing = "\n".join(f"{tool.name}({','.join(tool.parameters)})" for tool in tools)
    records = []
    for message in history:
        if message.role in ("user", "system"):
            records.append(f"<{message.role}> {message.text} </{message.role}>")
        elif message.role == "observation":
            records.append(f"<obs> {message.text} </obs>")
        else:
            records.append(step_text(message, "", escaped))
    return ChatPrompt(listing, "\n".join(records))


class PromptRenderer:
    """Renders steps to prompt ids, and targets to the ids that supervised training imitates.

    Attributes:
        template: the model's.
        format: in which steps are written.
        response_prefix: see `RenderedPrompt`.
        date: the day that the template writes; None if it writes none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        layout: Layout = "published",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        fold_system: bool | None = None,
        date: str | None = None,
        cache_dir: str | Path | None = None,
        format: str | None = None,
    ) -> None:
        """Check the tokenizer and the layout once.

        Args:
            tokenizer: with a chat template.
            layout: `published`, `compact` or `native`.
            chat_template_kwargs: passed on to the template, e.g. `{enable_thinking: true}`.
            fold_system: put the system text before the user's; None: if the template refuses a system message.
            date: YYYY-MM-DD, what a template that writes today's date writes; None: today.
            cache_dir: where the ids of large corpora are kept for the next start; None: nowhere.
            format: of `native`: `hermes`, `qwen3_xml`, `llama3_json` or `harmony`; None: the one that reads what the
                template writes. The other layouts ask for `rest`.

        Raises:
            ValueError: unknown layout or date, or a tokenizer without chat template or end-of-turn token.
            ConfigError: a template that prompts cannot be written with; see `ChatTemplate` and `NativeTemplate`.
        """
        if layout not in get_args(Layout):
            raise ConfigError(f"prompt.layout: expected one of {', '.join(get_args(Layout))}, found {layout!r}.")
        if layout != "native" and format not in (None, REST.name):
            raise ConfigError(
                f"prompt.format={format} with prompt.layout={layout}: its instructions ask for the format rest. Set "
                "prompt.layout=native, or leave prompt.format null."
            )
        if not tokenizer.chat_template:
            raise ValueError(
                f"tokenizer {tokenizer.name_or_path!r} has no chat template: use an instruct model, or set "
                "tokenizer.chat_template in its folder (chat_template.jinja)."
            )
        if tokenizer.eos_token_id is None:
            raise ValueError(f"tokenizer {tokenizer.name_or_path!r} has no eos token, which ends a response.")
        self.tokenizer = tokenizer
        self.layout = layout
        self.template: ChatTemplate | NativeTemplate
        self.format: OutputFormat
        if layout == "native":
            self.template = native = NativeTemplate(tokenizer, chat_template_kwargs, date, format)
            self.format, self._prompt, self._target = native.format, native.prompt_text, native.target_text
        else:
            self.template = chat = ChatTemplate(tokenizer, chat_template_kwargs, fold_system, date)
            self.format, self._target = REST, partial(self._written, chat)
            self._prompt = lambda example: self.chat_text(self.chat_prompt(example))
        self.response_prefix, self.date = self.template.prefix, self.template.date
        self.control = self.template.control
        self._special = self.template.special
        self._cache = TokenCache(None if cache_dir is None else Path(cache_dir) / "prompts", tokenizer)

    def render(self, example: TurnExample) -> RenderedPrompt:
        """Tokenise the prompt of one example. Raises as `render_all`."""
        return self.render_all([example])[0]

    def render_all(self, examples: Sequence[TurnExample]) -> list[RenderedPrompt]:
        """Tokenise the prompts of examples.

        Raises:
            DataError: a corpus of verbatim prompts under the compact layout; or one that `native` cannot take apart.
        """
        examples = list(map(self.opened, examples))
        ids = self._cache.encode([self._prompt(example) for example in examples])
        return [
            RenderedPrompt(one, self.response_prefix, example, self.format)
            for one, example in zip(ids, examples, strict=True)
        ]

    def opened(self, example: TurnExample) -> TurnExample:
        """The example as the layout writes it: of `native` with tools and messages, whatever it came as.

        Raises:
            DataError: its prompt cannot be taken apart.
        """
        return structured(example) if self.layout == "native" else example

    def continued(self, example: TurnExample, further: Sequence[Message]) -> tuple[Tensor, bool]:
        """The ids that follow an answer once something was observed, up to the next answer, int64 [T].

        Args:
            example: its target is the answer.
            further: what was observed since.

        Returns:
            The ids that are appended behind the answer's, and True; or those of a whole prompt that writes what came
            before in another way, and False.

        Raises:
            DataError: the chat template refuses the messages.
        """
        if isinstance(self.template, NativeTemplate):
            text, appended = self.template.continued(example, further)
        else:
            text = self._prompt(replace(example, history=(*example.history, example.target, *further)))
            appended = False
        return self._cache.encode([text])[0], appended

    def reading(self, example: TurnExample) -> Reading:
        """How a step that follows the example's prompt is read."""
        return Reading(self.format, self.response_prefix, example.tools)

    def encode_chat(self, prompt: ChatPrompt) -> Tensor:
        """Token ids of `chat_text`, int64 [P]."""
        return self._cache.encode([self.chat_text(prompt)])[0]

    def chat_text(self, prompt: ChatPrompt) -> str:
        """Two chat messages under the model's template, ready to be continued by an answer.

        Raises:
            ConfigError: the layout has no such messages.
        """
        if isinstance(self.template, NativeTemplate):
            raise ConfigError(
                "prompt.layout=native: expected messages with tools, found a prompt of two rendered texts. Set "
                "prompt.layout=published."
            )
        return self.template.prompt_text(prompt)

    def chat_prompt(self, example: TurnExample) -> ChatPrompt:
        """The two chat messages of an example's prompt.

        Raises:
            DataError: the layout wants structured tools and history, and the corpus has whole prompts.
        """
        if example.prompt is None:
            build = published_prompt if self.layout == "published" else compact_prompt
            return build(example.tools, example.history, self._special)
        if self.layout != "published":
            raise DataError(
                example.place,
                "prompt",
                "structured tools and history for layout 'compact'",
                "a prompt that the corpus publishes verbatim",
                "Set prompt.layout=published, or use a corpus of dialogues.",
            )
        return example.prompt

    def render_target(self, example: TurnExample) -> Tensor:
        """Token ids of the target, int64 [T], as they would follow `render`'s prompt, up to the token that ends it."""
        return self.render_targets([example])[0]

    def render_targets(self, examples: Sequence[TurnExample]) -> list[Tensor]:
        """`render_target` of each.

        Raises:
            DataError: the template cannot write one.
        """
        return self._cache.encode([self._target(self.opened(example)) for example in examples])

    def _written(self, template: ChatTemplate, example: TurnExample) -> str:
        text = step_text(example.target, escaped=self._special)
        if self.response_prefix:
            text = text.removeprefix(self.response_prefix.rstrip()).removeprefix(" ")
        return text + template.end
