"""One way to refuse a setting."""

from __future__ import annotations

from collections.abc import Iterable


def check_fields(section: str, settings: object, rules: Iterable[tuple[str, bool, str]]) -> None:
    """Raise for the first rule that does not hold.

    Args:
        section: where the settings stand in the config, e.g. `optimizer`.
        settings: the object that has the fields.
        rules: (field, whether it is fine, what is expected).

    Raises:
        ValueError: e.g. "optimizer.learning_rate: expected above 0, found -1.0."
    """
    for name, holds, expected in rules:
        if not holds:
            raise ValueError(f"{section}.{name}: expected {expected}, found {getattr(settings, name)!r}.")
