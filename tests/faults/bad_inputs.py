"""Inputs that cannot work, each built for real: what `docs/troubleshooting.md` calls it -> what makes it and uses it.

A builder gets a `Place` and raises, or returns what was said instead.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor
from transformers import AutoTokenizer

from src.config.command_line import unknown_keys
from src.config.guard import check_rows
from src.config.instantiating import instantiate_loggers
from src.config.policy_checks import check_policy
from src.config.rules import check_config
from src.data import datamodule
from src.data.sources.messages import MessagesSource
from src.data.sources.rlla import RllaSource
from src.data.sources.sharegpt import ShareGptSource
from src.data.sources.toolace import ToolAceSource
from src.data.sources.xlam import XlamSource
from src.models.checkpoints.resume_from import resume_from
from src.models.loading.loading import PolicyConfig, load_policy
from src.rewards.tool_call import Reward, ToolCallReward
from src.rollout.engine import EngineSource, SamplingParams
from src.rollout.vllm.server import VllmServerEngine
from src.runs import folder as run_folder
from src.runs.folder import open_run_folder
from src.runs.launching import check_launch
from src.train import train
from src.wings.evaluation.resolving import resolve_model
from src.wings.memory.preflight import check_disk
from tests.architectures.small import small_config
from tests.conftest import ROOT, SMALL, eval_config, published_corpus, train_config

TOOLS = [{"name": "sky", "description": "The sky.", "parameters": {"city": {"type": "str", "description": "Where."}}}]
ANSWERS = [{"name": "sky", "arguments": {"city": "Oslo"}}]
XLAM = {"query": "Sun?", "tools": json.dumps(TOOLS), "answers": json.dumps(ANSWERS)}
TURNS = [{"from": "user", "value": "Sun?"}, {"from": "assistant", "value": '[sky(city="Oslo)]'}]
ASKED = {"role": "user", "content": "Sun?"}
CALLED = {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": ANSWERS[0]}]}
SMALL_POLICY = ("data.max_prompt_tokens=400", "sampling.max_new_tokens=112", "optimizer.learning_rate=1.0e-4")


@dataclass
class Place:
    """Where an input is built.

    Attributes:
        folder: empty.
        policy: a whole model folder, not to be changed.
        patch: undone after the test.
    """

    folder: Path
    policy: Path
    patch: pytest.MonkeyPatch

    def model(self) -> Path:
        """A copy of the model folder."""
        return Path(shutil.copytree(self.policy, self.folder / "model"))

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path


Builder = Callable[[Place], object]


def config(*overrides: str) -> Builder:
    """A training config whose check fails."""
    return lambda place: check_config(train_config(place.folder, *overrides))


def policy(*overrides: str, change: Callable[[Path], object] = lambda folder: None) -> Builder:
    """A model folder that fails before its weights are read."""

    def build(place: Place) -> None:
        folder = place.model()
        change(folder)
        check_policy(train_config(place.folder, *SMALL_POLICY, f"policy.path={folder}", *overrides))

    return build


def weights(change: Callable[[Path], object]) -> Builder:
    """A model folder whose weights fail."""

    def build(place: Place) -> None:
        folder = place.model()
        change(folder)
        load_policy(PolicyConfig(path=folder, dtype="float32"))

    return build


def records(name: str, content: str | bytes | Callable[[Path], object], kind: type = XlamSource) -> Builder:
    """A data file that fails as it is read; `name` is how the message calls it."""

    def build(place: Place) -> None:
        path = place.folder / name
        if callable(content):
            content(path)
        else:
            place.file(name, content)
        kind(path=str(path)).load("train")

    return build


def xlam(**changes: Any) -> str:
    record = {key: value for key, value in {**XLAM, **changes}.items() if value is not None}
    return json.dumps([record])


def messages(*said: Mapping[str, Any], **columns: Any) -> Builder:
    """A row of messages that fails as it is read."""
    return records("x.json", json.dumps([{"messages": said, "tools": TOOLS, **columns}]), MessagesSource)


def cut(path: Path, share: float = 0.6) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# Model folders


def _without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def _without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def _closed_thought(folder: Path) -> None:
    """The template of Qwen3, in short."""
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    end = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    opened = "{% if add_generation_prompt %}<|im_start|>assistant\n" + end + "{% endif %}"
    (folder / "chat_template.jinja").write_text(template + opened)


def _template(change: Callable[[str], str]) -> Callable[[Path], object]:
    """What rewrites the chat template of a model folder."""

    def rewrite(folder: Path) -> None:
        file = folder / "chat_template.jinja"
        before = file.read_text()
        file.write_text(change(before))
        assert file.read_text() != before

    return rewrite


def _of_another_family(place: Place) -> None:
    """Training on packed rows of LFM2's architecture, whose convolutions would mix completions."""
    folder = place.model()
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    small_config("lfm2", vocab_size=vocabulary, max_position_embeddings=512).save_pretrained(folder)
    changes = (f"policy.path={folder}", "+policy.weights=random", "policy.rows=packed")
    train(train_config(place.folder / "run", *SMALL, *changes))


Rows = list[dict[str, str]]


def corpus(change: Callable[[Rows], object], *overrides: str) -> Callable[[Place], str]:
    """A training on a changed corpus in rlla's layout; what it warned of."""

    def build(place: Place) -> str:
        file = published_corpus(place.folder / "x.json", 12)
        rows = json.loads(file.read_text())
        change(rows)
        file.write_text(json.dumps(rows))
        place.file("held_out.json", json.dumps(rows[:3]))
        small = [override for override in SMALL if not override.startswith("data.train.")]
        settings = ("data=rlla", f"data.path={file}", "prompt.layout=published", f"policy.path={place.policy}", *small)
        shares = ("data.train.val_share=0.25", "data.limit_val=1")
        said: list[str] = []
        warn = datamodule.log.warning
        place.patch.setattr(datamodule.log, "warning", lambda text, *values: said.append(text % values) or warn(text))
        train(train_config(place.folder / "run", *settings, *shares, *overrides))
        return "\n".join(said)

    return build


def _first(**values: str) -> Callable[[Rows], object]:
    """What changes the first record."""
    return lambda rows: rows[0].update(values)


BREVITY = "def brevity(completions):\n    return [1.0]\n"


def rewards(code: str, build: Callable[[Callable[[str], list[str]]], Builder]) -> Builder:
    """A file of reward functions; `build` gets what makes the overrides for one of them."""

    def builder(place: Place) -> object:
        file = place.file("rewards.py", code)
        return build(lambda name: ["reward=python", f"reward.functions={{brevity: {file}:{name}}}"])(place)

    return builder


class EndlessReward(ToolCallReward):
    """A reward that is no number."""

    def __call__(self, *args: Any, **kwargs: Any) -> Reward:
        return replace(super().__call__(*args, **kwargs), total=float("nan"))


def _one_token_more(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer.add_tokens([AddedToken(f"<extra_{index}>") for index in range(rows + 1 - len(tokenizer))])
    tokenizer.save_pretrained(folder)


def _own_code(folder: Path) -> None:
    (folder / "modeling_own.py").write_text("raise SystemExit('it ran')\n")
    names = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    edit(folder / "config.json", model_type="own", auto_map=names)


def _index_of_two(folder: Path) -> None:
    name = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    """Changes a model folder's weights."""

    def apply(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def _not_finite(place: Place) -> None:
    folder = place.model()
    tensors(lambda found: found["model.norm.weight"].fill_(torch.nan))(folder)
    check_rows(load_policy(PolicyConfig(path=folder, dtype="float32")).policy)


class Payload:
    """Unpickled by anything but a restricted unpickler, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def _pickle_with_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Payload(folder.parent / "it_ran")}, folder / "pytorch_model.bin")


def _pickled(place: Place) -> None:
    try:
        weights(_pickle_with_code)(place)
    finally:
        assert not (place.folder / "it_ran").exists()


def _gguf(place: Place) -> None:
    place.file("model.gguf", b"nope" * 100)
    load_policy(PolicyConfig(path=place.folder, gguf_file="model.gguf", cache_dir=place.folder / "cache"))


# Checkpoints


def _checkpoint(place: Place, change: Callable[[Path], object]) -> None:
    """A run with a damaged `last.ckpt` and a whole `previous.ckpt`."""
    folder = place.folder / "run/checkpoints"
    folder.mkdir(parents=True)
    for name, step in (("previous.ckpt", 1), ("last.ckpt", 2)):
        content = {"rollout_step": step, "global_step": step, "state_dict": {"w": torch.arange(999.0)}}
        torch.save(content, folder / name)
    change(folder / "last.ckpt")
    resume_from(_resumed(place, folder / "last.ckpt"))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(999.0).numpy().tobytes()) + 5] ^= 4
    path.write_bytes(content)


def _resumed(place: Place, path: Path) -> Any:
    return train_config(place.folder, f"ckpt_path={path}")


def _empty_run(place: Place) -> None:
    (place.folder / "run/checkpoints").mkdir(parents=True)
    resume_from(_resumed(place, place.folder / "run"))


def _no_run(place: Place) -> None:
    (place.folder / "notes").mkdir()
    resolve_model(eval_config(place.folder, f"model={place.folder / 'notes'}"))


# Disks and servers


def _full_disk(place: Place) -> None:
    (place.folder / ".probe").symlink_to("/dev/full")  # writing there fails as on a full disk
    open_run_folder(place.folder)


def _held(place: Place) -> None:
    with run_folder.held(place.folder):
        train(train_config(place.folder, *SMALL_POLICY, f"policy.path={place.policy}"))


def _little_room(place: Place) -> None:
    usage = shutil.disk_usage(place.folder)
    place.patch.setattr(run_folder.shutil, "disk_usage", lambda folder: usage._replace(free=10_000))
    check_disk(train_config(place.folder, *SMALL_POLICY, f"policy.path={place.policy}"))


def _closed_port() -> int:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wandb(**environment: str) -> Builder:
    """What is said where W&B cannot be used; the run goes on with its numbers in the run folder."""

    def build(place: Place) -> str:
        import wandb as package

        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
            place.patch.delenv(name, raising=False)
        place.patch.setenv("HOME", str(place.folder / "home"))  # no `wandb login` of whoever runs this
        place.patch.setenv("NETRC", str(place.folder / "netrc"))
        for name, value in environment.items():
            place.patch.setenv(name, value.replace("PORT", str(_closed_port())))
        settings = OmegaConf.load(ROOT / "configs/logger/wandb.yaml")
        settings.wandb.save_dir, settings.wandb.name = str(place.folder), "bad"
        settings.wandb.settings.init_timeout = 4
        package.teardown()  # it reads its environment but once, and another test may have used it in this process
        said: list[str] = []
        place.patch.setattr("src.config.instantiating.log.warning", lambda text, *a: said.append(text % a))
        try:
            (logger,) = instantiate_loggers(settings)
            logger.log_metrics({"reward": 1.0}, step=0)
        finally:
            package.finish()
            package.teardown()
        assert list(place.folder.glob("wandb/offline-run-*/*.wandb"))
        (line,) = said
        return line

    return build


def _dead_vllm(place: Place) -> None:
    model = load_policy(PolicyConfig(path=place.policy, dtype="float32")).policy.model
    url = f"http://127.0.0.1:{_closed_port()}"
    engine = VllmServerEngine(
        EngineSource(model, str(place.policy)), url=url, weights_dir=place.folder / "weights", timeout_s=0.3
    )
    engine.update_weights(model.named_parameters(), 0)
    engine.generate([torch.tensor([1])], SamplingParams(), [0])


def _nested(path: Path) -> None:
    path.write_text("[" * 100_000)


def _torn_parquet(path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist([XLAM] * 50), path)
    cut(path)


def _null_in_parquet(path: Path) -> None:
    schema = {"type": "object", "properties": {"city": {"type": ["string", "null"]}}, "required": ["city"]}
    rows = [
        {"query": "Sun?", "tools": json.dumps([{"name": "sky", "parameters": schema}]), "answers": [answer]}
        for answer in (*ANSWERS, {"name": "sky", "arguments": {"city": None}})
    ]
    parquet.write_table(pa.Table.from_pylist(rows), path)


BAD_INPUTS: Mapping[str, Builder] = {
    "misspelt key on the command line": lambda place: "".join(unknown_keys(["updates.rollout_step=3"], "train.yaml")),
    "misspelt key behind `+`, or in an experiment's file": config("+updates.rollout_step=3"),
    "unknown key at the top": config("+sed=3"),
    "callback that is misspelt to leave it out": config("+callbacks.helth=null"),
    "value that is missing": config("data=hammer", "data.train.seed=???"),
    "value of the wrong type": config("updates.rollout_steps=ten"),
    "choice that there is none": config("optimizer.schedule=linear"),
    "value out of range": config("optimizer.learning_rate=-1"),
    "class that cannot be imported": config("reward._target_=src.rewards.tool_cal.Reward"),
    "reward function whose file is not there": config(
        "reward=python", "reward.functions={brevity: my_reward.py:brevity}"
    ),
    "reward function that its file does not have": rewards(BREVITY, lambda own: config(*own("brevty"))),
    "file of reward functions that fails": rewards("oops", lambda own: config(*own("brevity"))),
    "prompts that do not divide into minibatches": config(
        "data.prompts_per_step=10", "updates.prompts_per_minibatch=4"
    ),
    "one completion a prompt": config("sampling.n=1"),
    "more ranks than prompts": config("trainer=fsdp_cpu", "trainer.devices=17"),
    "prompt and completion longer than the model's context": policy("data.max_prompt_tokens=9000"),
    "completions longer than vLLM's context": config("rollout=vllm", "rollout.max_model_len=500"),
    "benchmarks' answers as long as vLLM's context": policy(
        "rollout=vllm", "rollout.max_model_len=600", "callbacks.benchmark.max_new_tokens=600"
    ),
    "sampling that vLLM has no log-probabilities for": config(
        "rollout=vllm", "sampling.temperature=0.7", "rollout.logprobs_mode=raw_logprobs"
    ),
    "vLLM where it is not installed": lambda place: (
        place.patch.setattr("src.rollout.vllm.requests.find_spec", lambda name: None),
        config("rollout=vllm")(place),
    ),
    "float16": config("trainer.precision=16-mixed"),
    "a GPU where there is none": lambda place: (
        place.patch.setattr(torch.cuda, "is_available", lambda: False),
        config("trainer.accelerator=gpu")(place),
    ),
    "learning rate that bfloat16 weights round away": policy("policy.dtype=bfloat16", "optimizer.learning_rate=1.0e-6"),
    "metric that is never logged, for the best checkpoint": config("callbacks.checkpoint.monitor=val/rewrd"),
    "metric that is never logged, for a sweep": config("optimized_metric=val/exact_mach"),
    "chat template that closes `<think>` itself": policy(
        "+prompt.chat_template_kwargs.enable_thinking=false", change=_closed_thought
    ),
    "setting that the chat template does not know": policy("prompt.chat_template_kwargs={enable_thinkng: false}"),
    "chat template that drops the system message": policy(
        change=_template(lambda text: text.replace("in messages", "in messages if message['role'] != 'system'"))
    ),
    "chat template that changes a text": policy(
        change=_template(lambda text: text.replace("['content']", "['content'] | escape"))
    ),
    "chat template that ends answers with plain text": policy(
        change=_template(lambda text: text.replace("<|im_end|>", "[END]"))
    ),
    "date that is none": policy(
        "prompt.date=yesterday", change=_template(lambda text: "{{ strftime_now('%d %b') }}" + text)
    ),
    "compact prompts of a corpus that has its own": config("data=rlla", "data.path=x.json", "prompt.layout=compact"),
    "several processes without a common run folder": lambda place: check_launch(
        {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"}, []
    ),
    "file that is not there": config("data=xlam", "data.path=nowhere.json"),
    "file of an unknown kind": lambda place: config("data=xlam", f"data.path={place.file('x.csv', 'a,b')}")(place),
    "folder without a corpus": lambda place: config("data=xlam", f"data.path={place.file('README.md', '').parent}")(
        place
    ),
    "JSON that is cut short": records("x.json", xlam()[:-20]),
    "JSON lines with a broken one": records("x.jsonl", f"{json.dumps(XLAM)}\n{json.dumps(XLAM)[:-9]}\n"),
    "parquet that is cut short": records("x.parquet", _torn_parquet),
    "gzip file that is cut short": records("x.json.gz", gzip.compress(xlam().encode())[:-9]),
    "pointer of Git LFS in place of a file": records(
        "x.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132\n"
    ),
    "text that is not UTF-8": records("x.json", xlam().encode().replace(b"Sun", b"\xff\xfe")),
    "JSON nested without end": records("x.json", _nested),
    "object with several lists of records, or none": records("x.json", json.dumps({"a": [XLAM], "b": [XLAM]})),
    "record that is no object": records("x.json", json.dumps([XLAM, "Sun?"])),
    "key that occurs twice in an object": records(
        "x.json", xlam(answers=json.dumps(ANSWERS).replace("}}", ', "city": "Rome"}}'))
    ),
    "NaN, Infinity, or a number that no float can hold": records(
        "x.json", xlam(tools=json.dumps(TOOLS).replace('"Where."', '"Where.", "default": 1e999'))
    ),
    "half of an emoji": records("x.json", xlam(query="Sun \ud83d")),
    "field of the wrong type": records("x.json", xlam(query=7)),
    "field that is missing": records("x.json", xlam(answers=None)),
    "request without text": records("x.json", xlam(query=" ")),
    "answers that open like calls and are none": records("x.json", xlam(answers=json.dumps(ANSWERS)[:-2])),
    "answers in text without words": records("x.json", xlam(answers="N/A")),
    "null for a required parameter in a nested column of parquet": records("x.parquet", _null_in_parquet),
    "call of a tool that is not on offer": records("x.json", xlam(answers=json.dumps([{**ANSWERS[0], "name": "sea"}]))),
    "system prompt of ToolACE without a list of tools": records(
        "x.json", json.dumps([{"system": 'Users: [{"name": "Bob"}]', "conversations": TURNS}]), ToolAceSource
    ),
    "message of ToolACE that opens like calls and is none": records(
        "x.json", json.dumps([{"system": json.dumps(TOOLS), "conversations": TURNS}]), ToolAceSource
    ),
    "file of another known shape than `data=` reads": records(
        "x.json", json.dumps([{"messages": [ASKED], "tools": []}])
    ),
    "file with a corpus that reads none": lambda place: config(
        f"+data.path={place.file('x.json', json.dumps([{'messages': [ASKED], 'tools': []}]))}"
    )(place),
    "result without its call": messages(ASKED, CALLED, {"role": "tool", "tool_call_id": "b", "content": "sunny"}),
    "image, audio or another part that is no text": messages(
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "sun.png"}}]}
    ),
    "role that there is none": messages({"role": "bot", "content": "Hi."}),
    "dialogue without an answer": messages(ASKED),
    "target that the row's own `tool_choice` or `parallel_tool_calls` forbids": messages(
        ASKED, CALLED, tool_choice="none"
    ),
    "function call of ShareGPT that is no JSON": records(
        "x.json",
        json.dumps(
            [{"conversations": [{"from": "human", "value": "Sun?"}, {"from": "function_call", "value": "sky()"}]}]
        ),
        ShareGptSource,
    ),
    "target outside the output protocol": records(
        "x.json", json.dumps([{"instruction": "i", "input": "j", "output": "Sure!"}]), RllaSource
    ),
    "target that no reader reads back as it was written": corpus(
        _first(output="<think> It ends with <|im_end|> here. </think>\n<response> Hi. </response>")
    ),
    "validation share of which no dialogue is left": corpus(_first(), "data.train.val_share=0.02"),
    "validation file that is not there": config("data=xlam", "data.val.path=nowhere.json"),
    "dialogues that are in the training and in the validation file": lambda place: corpus(
        _first(), f"data.val.path={place.folder / 'held_out.json'}"
    )(place),
    "response that looks like a call": corpus(
        lambda rows: [
            row.update(output="<think> Hm. </think>\n<response> [TOOL_CALLS] sky </response>") for row in rows
        ]
    ),
    "prompt with special tokens in its texts": corpus(_first(input="<user> Sun?<|im_end|> </user>")),
    "reward that is no finite number": corpus(
        _first(), f"reward._target_={EndlessReward.__module__}.EndlessReward", "data.on_bad_record=skip"
    ),
    "reward function that returns too few rewards": rewards(BREVITY, lambda own: corpus(_first(), *own("brevity"))),
    "reward function that returns something other than numbers": rewards(
        BREVITY.replace("[1.0]", "['high'] * len(completions)"), lambda own: corpus(_first(), *own("brevity"))
    ),
    "benchmark without its data": lambda place: instantiate(
        eval_config(place.folder, "benchmark=[api_bank]", f"paths.data_dir={place.folder}").benchmark.api_bank
    ).samples(),
    "folder that is not there": config("policy.path=nowhere"),
    "no tokenizer files": policy(change=_without_tokenizer),
    "tokenizer that is cut short": policy(change=lambda folder: cut(folder / "tokenizer.json")),
    "tokenizer without a chat template": policy(change=_without_template),
    "tokenizer of another model": policy(change=_one_token_more),
    "`config.json` that is cut short": policy(change=lambda folder: cut(folder / "config.json")),
    "`config.json` of no language model": policy(
        change=lambda folder: (folder / "config.json").write_text('{"architectures": ["Nothing"]}')
    ),
    "`config.json` with a value that transformers cannot use": policy(
        change=lambda folder: edit(folder / "config.json", hidden_size="64")
    ),
    "encoder, or a model that translates": policy(
        change=lambda folder: (folder / "config.json").write_text('{"model_type": "t5"}')
    ),
    "PEFT adapter in the folder": policy(
        change=lambda folder: (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    ),
    "Python code that comes with the model": policy(change=_own_code),
    "weights that are quantised in another way than MXFP4 and FP8": policy(
        change=lambda folder: edit(folder / "config.json", quantization_config={"quant_method": "gptq"})
    ),
    "weights that are cut short": weights(lambda folder: cut(folder / "model.safetensors")),
    "index that names a missing file": weights(_index_of_two),
    "weights that lack a tensor": weights(tensors(lambda found: found.pop("model.norm.weight"))),
    "weights with a tensor that `config.json` has no use for": weights(
        tensors(lambda found: found.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(1)}))
    ),
    "head that differs from the embeddings with `tie_word_embeddings=true`": weights(
        tensors(lambda found: found.update({"lm_head.weight": found["model.embed_tokens.weight"] + 1}))
    ),
    "weights that are not finite": _not_finite,
    "weights of other shapes": weights(lambda folder: edit(folder / "config.json", intermediate_size=96)),
    "pickled weights with code in them": _pickled,
    "`policy.rows=packed` with a model that it is wrong for": _of_another_family,
    "GGUF file that is none": _gguf,
    "`ckpt_path` that is not there": lambda place: resume_from(_resumed(place, place.folder / "no.ckpt")),
    "checkpoint that is cut short": lambda place: _checkpoint(place, cut),
    "checkpoint with one flipped bit": lambda place: _checkpoint(place, _flip),
    "run folder without a checkpoint": _empty_run,
    "`model=` without a run's config": _no_run,
    "run folder that is a file": lambda place: open_run_folder(place.file("run", "x")),
    "run folder that cannot be written": lambda place: open_run_folder(place.file("x", "x") / "run"),
    "run folder that a run is writing to": _held,
    "full disk": _full_disk,
    "too little room for the checkpoints": _little_room,
    "W&B without a key": wandb(),
    "W&B with a key of the wrong form": wandb(WANDB_API_KEY="short"),
    "W&B that cannot be reached": wandb(WANDB_API_KEY="c" * 40, WANDB_BASE_URL="http://127.0.0.1:PORT"),
    "vLLM server that is not there": _dead_vllm,
}
