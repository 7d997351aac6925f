"""What documented commands refer to."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records in the published layout."""
    records = [
        {
            "instruction": f"**Available Tools**\n1. Name: tool_{i}\nDescription: d.\nParameters: {{}}",
            "input": f"**Dialogue Records History**\n<user> Call tool {i}. </user>",
            "output": "<think> It fits. </think>\n<tool_call>\n"
            f'{{"name": "tool_{i}", "parameters": {{}}}}\n</tool_call>',
        }
        for i in range(60)
    ]
    path = tmp_path_factory.mktemp("corpus") / "rlla_sft.json"
    path.write_text(json.dumps(records))
    return path
