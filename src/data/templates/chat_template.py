"""The model's chat template: what it makes of the messages of a prompt, and how it ends an answer."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from src.errors import ConfigError

if TYPE_CHECKING:  # prompt texts are also wanted where it is not installed (bfcl-eval's own environment)
    from transformers import PreTrainedTokenizerBase

    from src.protocol.dialogue import ChatPrompt

log = logging.getLogger(__name__)

_SYSTEM, _USER = (
    f'The {role} says {{"a": "<b> & \u00fc"}}.\n\n  <think> </think>\n<tool_call>\n</tool_call>\n<response> '
    + "At length. " * 400
    + "</response>"
    for role in ("system", "user")
)
_ANSWER = 'The answer says {"a": "<b> & \u00fc"}.\n\n  Twice.'
"""Texts in which a template that drops, cuts, escapes or rewraps what it is given shows."""

_REPLY = {"role": "assistant", "content": _ANSWER}


class ChatTemplate:
    """A tokenizer's chat template, tried out once.

    Attributes:
        folds_system: whether the system text goes before the user's, because the template takes no system message.
        date: the day that the template writes, as YYYY-MM-DD; None if it writes none.
        prefix: the part of an answer that the template writes at the end of a prompt (`<think>` of thinking
            templates), empty for most.
        opening: what it writes between a prompt that is to be answered and the answer, but leaves out where there is no
            answer yet; prompts end with it. Empty for most.
        special: the tokenizer's special tokens.
        control: those of them that the template writes around messages.
        end: what the template writes behind an answer, up to the token that ends the turn.
        end_id: that token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        settings: Mapping[str, Any] | None = None,
        fold_system: bool | None = None,
        day: str | None = None,
    ) -> None:
        """Render marked messages and look for them in what comes out.

        Args:
            tokenizer: with a chat template and an end-of-sequence token.
            settings: passed on to the template.
            fold_system: see `folds_system`; None: if the template refuses a system message.
            day: see `date`; None: today.

        Raises:
            ConfigError: the template drops or changes a text, or ends answers with text that stops nothing.
        """
        self._tokenizer = tokenizer
        self._settings, self.date = template_settings(tokenizer, settings, day)
        self.folds_system = bool(fold_system)
        opened = self._tried(fold_system)
        start = opened.find("<think>", opened.rfind(_USER) + len(_USER))
        self.prefix = opened[start:] if start >= 0 else ""
        self.end, self.end_id = turn_end(tokenizer, self._settings)
        self.opening = self._find_opening(opened)
        written = opened + self.opening + self.end
        self.special = tuple(special_tokens(tokenizer).values())
        self.control = tuple(token for token in self.special if token in written)

    def prompt_text(self, prompt: ChatPrompt) -> str:
        """The text of a prompt, ready to be continued by an answer; special tokens are spelled out."""
        return self._text(prompt.system, prompt.user, opened=True) + self.opening

    def _find_opening(self, opened: str) -> str:
        """See `opening`; thoughts that the template writes by itself are no part of it."""
        answered = render(self._tokenizer, [*self._messages(_SYSTEM, _USER), _REPLY], False, self._settings)
        if not answered.startswith(opened) or (at := answered.find(_ANSWER, len(opened))) < 0:
            return ""
        found = answered[len(opened) : at]
        if not found.strip() or "think>" in found:
            return ""
        _say(f"writes {found!r} before an answer, which its generation prompt lacks: prompts end with it")
        return found

    def _tried(self, fold: bool | None) -> str:
        """The text of the marked prompt, once the template takes it; sets `folds_system` if it takes no system role."""
        try:
            text = self._text(_SYSTEM, _USER, opened=True)
        except faults() as error:
            if fold is not None:
                advice = "" if fold else " Set prompt.fold_system=true to put its text before the user's."
                raise self._error(f"refuses the messages of a prompt ({error}).{advice}") from error
            self.folds_system = True
            text = self._tried(True)
            _say(f"takes no system message ({error}): its text goes before the user's (prompt.fold_system)")
        if _SYSTEM not in text:
            advice = "Mend" if self.folds_system else "Set prompt.fold_system=true to put it before the user's, or mend"
            raise self._error(
                "drops or changes the system message, which holds the tools (a text, not a list of parts). "
                f"{advice} the template. It writes {text[:200]!r}"
            )
        if _USER not in text:
            raise self._error(f"drops or changes the user's message. Mend the template. It writes {text[:200]!r}")
        return text

    def _text(self, system: str, user: str, *, opened: bool = False) -> str:
        return render(self._tokenizer, self._messages(system, user), opened, self._settings)

    def _messages(self, system: str, user: str) -> list[dict[str, str]]:
        if self.folds_system:
            return [{"role": "user", "content": f"{system}\n\n{user}"}]
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]

    def _error(self, found: str) -> ConfigError:
        return _error(self._tokenizer, found)


def faults() -> tuple[type[Exception], ...]:
    """What a template, which is a program, may raise."""
    from jinja2 import TemplateError

    return (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


def template_settings(
    tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any] | None, day: str | None
) -> tuple[dict[str, Any], str | None]:
    """What a template is rendered with: the user's settings, and where it writes a date, `day` (None: today).

    Raises:
        ConfigError: `day` is no date, or the template knows nothing of a setting.
    """
    for name in settings or {}:
        if not re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)):
            raise ConfigError(
                f"prompt.chat_template_kwargs: expected names that the chat template of '{tokenizer.name_or_path}' "
                f"reads, found '{name}'. Correct it, or leave it out."
            )
    if "strftime_now" not in str(tokenizer.chat_template):
        return dict(settings or {}), None
    found = date.today().isoformat() if day is None else str(day)
    try:
        moment = datetime.strptime(found, "%Y-%m-%d")
        if moment.date().isoformat() != found:
            raise ValueError(found)  # without its zeros
    except ValueError as error:
        raise ConfigError(f"prompt.date: expected a date as YYYY-MM-DD, found {day!r}.") from error
    return {**(settings or {}), "strftime_now": moment.strftime}, found


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Id and text of each token that is marked special."""
    return {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def turn_end(tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any] | None = None) -> tuple[str, int]:
    """What the chat template writes behind an answer, up to the token that ends the turn, and that token's id.

    It is the end-of-sequence token where the template writes nothing there.

    Raises:
        ConfigError: the template drops or changes the answer, or ends it with text that stops nothing.
    """
    try:
        text = render(tokenizer, [{"role": "user", "content": _USER}, _REPLY], False, settings or {})
    except faults() as error:
        raise _error(tokenizer, f"refuses an answer ({error}).") from error
    if _ANSWER not in text:
        raise _error(
            tokenizer, f"drops or changes the assistant's answer. Mend the template. It writes {text[-200:]!r}"
        )
    written = text[text.rfind(_ANSWER) + len(_ANSWER) :]
    eos = tokenizer.eos_token_id
    ids = list(tokenizer(written, add_special_tokens=False, verbose=False)["input_ids"])
    special = {eos, *special_tokens(tokenizer)}
    stop = next((index for index in ids if index in special), None)
    if stop is None and not written.strip():
        return str(tokenizer.eos_token), eos
    if stop is None:
        raise _error(
            tokenizer,
            f"ends an answer with {written!r}, expected a special token, at which generation can stop. Let it write "
            f"{tokenizer.eos_token!r} there.",
        )
    token = str(tokenizer.convert_ids_to_tokens(stop))
    if stop != eos:
        _say(
            f"ends a turn with {token!r}, the tokenizer's end of sequence is {tokenizer.eos_token!r}: completions end "
            "at either, and targets with the template's"
        )
    return written.partition(token)[0] * (token in written) + token, stop


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], opened: bool, settings: Mapping[str, Any]
) -> str:
    """What the template writes; `opened`: ready to be answered."""
    given: Any = messages
    return str(tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=opened, **settings))


def _error(tokenizer: PreTrainedTokenizerBase, found: str) -> ConfigError:
    return ConfigError(f"prompt: the chat template of '{tokenizer.name_or_path}' {found}")


@cache
def _say(found: str) -> None:
    """Once a process: a run tries its template before it loads weights, and again with the model's tokenizer."""
    log.info("The chat template %s.", found)
