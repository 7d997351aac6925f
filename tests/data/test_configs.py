"""Every corpus config composes, finds its file through `data.path`, and yields batches."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from src.data.datamodule import ToolDialogueDataModule
from src.data.rendering import RenderedPrompt
from src.protocol.dialogue import TurnExample

CONFIGS = Path(__file__).parents[2] / "configs"
TOOL = {"name": "tide_times", "description": "Tides.", "parameters": {"harbour": {"type": "str"}}}
CALL = '{"name": "tide_times", "parameters": {"harbour": "Hull"}}'


class ByteRenderer:
    """One token a byte of the whole prompt."""

    date = None
    control = ()

    def render_all(self, examples: Sequence[TurnExample]) -> list[RenderedPrompt]:
        prompts = [repr((example.tools, example.history, example.prompt)).encode() for example in examples]
        ids = [torch.tensor(list(prompt)) for prompt in prompts]
        return [RenderedPrompt(one, "", example) for one, example in zip(ids, examples, strict=True)]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    def system(number: int) -> str:
        return f"Today is day {number}. Here is a list of functions in JSON format that you can invoke:\n" + json.dumps(
            [TOOL]
        )

    records = {
        "rlla": [
            {
                "instruction": "tools",
                "input": f"<user> Hull, {n}? </user>",
                "output": f"<think> a </think>\n<tool_call>\n{CALL}\n</tool_call>",
            }
            for n in range(60)
        ],
        "toolace": [
            {
                "system": system(n),
                "conversations": [
                    {"from": "user", "value": f"Hull, {n}?"},
                    {"from": "assistant", "value": '[tide_times(harbour="Hull")]'},
                ],
            }
            for n in range(60)
        ],
        "xlam": [
            {
                "id": n,
                "query": f"Hull, {n}?",
                "tools": json.dumps([TOOL]),
                "answers": json.dumps([{"name": "tide_times", "arguments": {"harbour": "Hull"}}]),
            }
            for n in range(60)
        ],
    }
    function = {"name": "tide_times", "arguments": '{"harbour": "Hull"}'}
    records["messages"] = [
        {
            "messages": [
                {"role": "user", "content": f"Hull, {n}?"},
                {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": function}]},
            ],
            "tools": [{"type": "function", "function": TOOL}],
        }
        for n in range(60)
    ]
    records["sharegpt"] = [
        {
            "conversations": [
                {"from": "human", "value": f"Hull, {n}?"},
                {"from": "function_call", "value": json.dumps({**function, "arguments": {"harbour": "Hull"}})},
            ],
            "tools": json.dumps([TOOL]),
        }
        for n in range(60)
    ]
    for name, values in records.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    return {name: str(tmp_path / f"{name}.json") for name in records}


@pytest.mark.parametrize("name", ["rlla", "toolace", "xlam", "hammer", "messages", "sharegpt", "mix"])
def test_a_corpus_config_yields_batches(name: str, files: dict[str, str]) -> None:
    overrides = [f"+data={name}", "data.prompts_per_step=8", "data.limit_val=2"]
    if name == "mix":
        overrides += [f"data.path.{part}={files[part]}" for part in ("toolace", "xlam")]
        overrides += [f"data.train.parts.{part}.count={count}" for part, count in (("toolace", 20), ("hammer", 10))]
        overrides += ["data.train.parts.xlam.count=10"]
    else:
        overrides += [f"data.path={files['xlam' if name == 'hammer' else name]}"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(overrides=overrides)
    datamodule: ToolDialogueDataModule = instantiate(cfg.data)
    datamodule.renderer = ByteRenderer()
    datamodule.setup("fit")

    batches = list(datamodule.train_dataloader())
    # 2 % of 60 dialogues are held out: 59 are left (mix: 40 are sampled), in batches of 8
    assert len(batches) == (5 if name == "mix" else 7)
    assert {prompt.example.source for batch in batches for prompt in batch} <= {name, "toolace", "hammer", "xlam"}
    assert len(datamodule.val_dataloader()) == 1
    assert datamodule.val_names == ("val",)
    assert len(datamodule.prompts("val")) == (2 if name == "mix" else 1)


def test_files_of_one_s_own_are_mixed_by_shares(files: dict[str, str]) -> None:
    kinds = {"messages": "messages.MessagesSource", "sharegpt": "sharegpt.ShareGptSource"}
    parts = {
        name: {
            "share": share,
            "source": {"_target_": f"src.data.sources.{kinds[name]}", "path": files[name], "val_share": 0.1},
        }
        for name, share in (("messages", 0.75), ("sharegpt", 0.25))
    }
    mix = instantiate({"_target_": "src.data.sources.mix.MixSource", "parts": parts})

    assert [sum(one.source == name for one in mix.load("train")) for name in kinds] == [54, 18]
    assert len(mix.load("val")) == 12


def test_masked_and_plain_parts_of_the_mix_hold_out_the_same_dialogues() -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(overrides=["+data=mix"])
    parts = cfg.data.train.parts

    assert parts.hammer.source.source == parts.xlam.source
    assert [parts[name]["count"] for name in ("toolace", "hammer", "xlam")] == [2000, 1000, 1000]
