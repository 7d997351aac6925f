"""The tokenizers and targets of the protocol's tests."""

from tests.protocol.conftest import mistral, qwen_like, rlla_targets, smollm2

__all__ = ["mistral", "qwen_like", "rlla_targets", "smollm2"]
