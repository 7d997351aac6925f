"""An evaluation's folder: what was finished is read back, what is damaged is named, a model is told by its content."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from src.errors import ConfigError
from src.models.checkpoints.reading import checkpoint_digest
from src.models.loading.loading import PolicyConfig
from src.models.loading.lora import LoraSettings
from src.wings.evaluation.benchmark import Record
from src.wings.evaluation.evaluation_folder import RecordError, RecordStore, model_identity
from src.wings.evaluation.resolving import ModelSource
from tests.conftest import ROOT

RECORDS = [
    Record("a/0", "one", True, {"strict": 0.1}, {"text": "Grüße\u2028\ud800\n", "calls": [{"name": "f"}, None]}),
    Record("a/1", "two", False),
]


@pytest.fixture
def store(tmp_path) -> RecordStore:
    store = RecordStore(tmp_path / "toy.jsonl")
    for record in RECORDS:
        store.append(record)
    return store


def test_records_come_back_equal(store):
    assert store.read() == RECORDS
    assert len(store.path.read_bytes().splitlines()) == 2
    store.rewrite(RECORDS[::-1])
    assert store.read() == RECORDS[::-1]


def test_no_file_is_no_records(tmp_path):
    assert RecordStore(tmp_path / "none.jsonl").read() == []


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_dropped_and_its_sample_is_written_again(store, cut):
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:-cut])  # a cut of 1 takes the line break only: not finished either
    assert store.read() == RECORDS[:1]
    store.append(RECORDS[1])
    assert store.path.read_bytes() == whole


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a/9", "cat', r"toy.jsonl, line 2: expected a JSON object, found b'{\"id\": \"a/9\", \"cat'"),
        ("[1]", r"line 2: expected an object with the keys \['category', .*'passed'\], found list"),
        ('{"id": "a/9"}', r"line 2: expected an object with the keys .*, found \['id'\]"),
        (
            '{"id": "x", "category": "y", "passed": 1, "metrics": {}, "details": {}}',
            r"line 2: expected 'passed' to be a bool, found 1",
        ),
        (
            '{"id": "a/0", "category": "y", "passed": true, "metrics": {}, "details": {}}',
            r"line 2: expected an id that no line above has, found 'a/0' again",
        ),
    ],
)
def test_a_bad_line_in_the_middle_is_an_error(store, line, message):
    first, second = store.path.read_text().splitlines()
    store.path.write_text(f"{first}\n{line}\n{second}\n")
    with pytest.raises(RecordError, match=message):
        store.read()


def test_details_nested_too_deep_for_json_are_left_out(tmp_path):
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    store = RecordStore(tmp_path / "toy.jsonl")
    store.append(Record("a", "b", False, {"strict": 1.0}, {"calls": deep}))
    (found,) = store.read()
    assert (found.id, found.passed, found.metrics) == ("a", False, {"strict": 1.0})
    assert json.dumps(found.details) == '{"omitted": "nested too deep for JSON"}'


TINY = ROOT / "src/models/tiny"


def identity(folder: Path) -> dict:
    return model_identity(ModelSource("x", "folder", PolicyConfig(path=folder, dtype="float32")))


@pytest.mark.parametrize(
    ("file", "changed"), [("model.safetensors", "weights"), ("chat_template.jinja", "files"), ("config.json", "files")]
)
def test_a_copied_folder_is_the_same_model_until_a_byte_changes(tmp_path, file, changed):
    copy = Path(shutil.copytree(TINY, tmp_path / "copy"))
    assert identity(copy) == identity(TINY)
    content = bytearray((copy / file).read_bytes())
    content[-2] ^= 1
    (copy / file).write_bytes(content)
    before, after = identity(TINY), identity(copy)
    assert [key for key in before if before[key] != after[key]] == [changed]


def test_a_checkpoint_is_its_tensors_whatever_its_name(tmp_path):
    state = {"a": torch.arange(1000.0), "b": torch.zeros(1000)}
    torch.save(state, tmp_path / "one.ckpt")
    torch.save(state, tmp_path / "two.ckpt")
    assert checkpoint_digest(tmp_path / "one.ckpt") == checkpoint_digest(tmp_path / "two.ckpt")
    state["b"][999] = 1e-30
    torch.save(state, tmp_path / "two.ckpt")
    assert checkpoint_digest(tmp_path / "one.ckpt") != checkpoint_digest(tmp_path / "two.ckpt")
    (tmp_path / "two.ckpt").write_bytes((tmp_path / "two.ckpt").read_bytes()[:3000])
    with pytest.raises(ConfigError, match=r"two.ckpt': expected a whole file of torch.save"):
        checkpoint_digest(tmp_path / "two.ckpt")


def test_a_checkpoint_of_adapters_is_a_model_with_its_base(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "one.ckpt")
    source = ModelSource("x", "run", PolicyConfig(path=TINY, lora=LoraSettings(rank=2)), {}, tmp_path / "one.ckpt")
    found = model_identity(source)
    assert found["base_weights"] == identity(TINY)["weights"] and found["weights"] != found["base_weights"]
    whole = model_identity(ModelSource("x", "run", PolicyConfig(path=TINY), {}, tmp_path / "one.ckpt"))
    assert whole["weights"] == found["weights"] and "base_weights" not in whole


def test_a_hub_model_is_its_commit(monkeypatch):
    source = ModelSource("x", "hub", PolicyConfig(hub_id="owner/name"))
    load = "transformers.AutoConfig.from_pretrained"
    monkeypatch.setattr(load, lambda *_, **__: SimpleNamespace(_commit_hash="c0ffee"))
    assert model_identity(source) == {"dtype": "bfloat16", "lora": None, "commit": "c0ffee", "weights": "pretrained"}

    def unreachable(*_, **__):
        raise OSError("No connection.\nMore lines.")

    monkeypatch.setattr(load, unreachable)
    with pytest.raises(ConfigError, match=r"model=owner/name: the hub does not give its config.json: No connection\.$"):
        model_identity(source)
