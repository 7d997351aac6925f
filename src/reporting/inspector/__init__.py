"""The rollout inspector: what the policy wrote, token by token, on a page (`section`) and in a terminal."""

from src.wings.reporting.inspector.section import section

__all__ = ["section"]
