"""ShareGPT's dialogues, as LLaMA-Factory and ms-swift have them: rows of `conversations`, `tools` and `system`."""

from __future__ import annotations

from src.data.sources.messages import MessagesSource
from src.data.sources.reading import Record, require, shape_of
from src.protocol.dialogue import DataError, Message, TurnExample


class ShareGptSource(MessagesSource):
    """Records `{"conversations": [{"from", "value"}, …], "tools": […], "system": …}`.

    `from` is human, gpt, system, function_call or observation, or another of their names. Function calls are JSON text
    of a call or of a list; several in a row are one step. All else is as in `MessagesSource`.
    """

    default_name = "sharegpt"

    def convert(self, record: Record) -> list[TurnExample]:
        """One example a target."""
        row = dict(record.value)
        if shape_of(row) == "toolace":
            raise DataError(record.where, "tools", "the tools in a column, not in the text of `system`", sorted(row))
        system = require(row, "system", str, record.where) if row.get("system") is not None else ""
        row.pop("system", None)
        return self.examples(record, row, "conversations", (Message("system", system),) if system.strip() else ())
