import pytest
import torch
from transformers import PreTrainedTokenizerBase

from src.runs import token_cache
from src.runs.token_cache import TokenCache
from src.wings.tiny.make import build_tokenizer

TEXTS = ["Sun in Oslo?", "", "Rain in Rome? \u00fc \U0001f327"]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer(vocab_size=512, examples=300)


def test_ids_are_the_tokenizer_s_and_are_kept(tokenizer, tmp_path, monkeypatch) -> None:
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert [ids.tolist() for ids in TokenCache(None, tokenizer).encode(TEXTS)] == expected
    assert [ids.tolist() for ids in TokenCache(tmp_path, tokenizer).encode(TEXTS)] == expected
    assert list(tmp_path.iterdir()) == []  # a small corpus is not worth a file

    monkeypatch.setattr(token_cache, "_LEAST", 1)
    assert [ids.tolist() for ids in TokenCache(tmp_path, tokenizer).encode(TEXTS)] == expected
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(TokenCache, "_tokenised", None)  # not called again
    again = TokenCache(tmp_path, tokenizer).encode(TEXTS)
    assert [ids.tolist() for ids in again] == expected
    assert {ids.dtype for ids in again} == {torch.int64}
    assert len({ids.untyped_storage().data_ptr() for ids in again if len(ids)}) == 2  # none is a view of all
    monkeypatch.undo()

    monkeypatch.setattr(token_cache, "_LEAST", 1)
    file.write_bytes(file.read_bytes()[:-4])  # cut short
    assert [ids.tolist() for ids in TokenCache(tmp_path, tokenizer).encode(TEXTS)] == expected
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # a bit of the last id or length
    file.write_bytes(bytes(content))
    assert [ids.tolist() for ids in TokenCache(tmp_path, tokenizer).encode(TEXTS)] == expected
    other = build_tokenizer(vocab_size=400, examples=300)
    TokenCache(tmp_path, other).encode(TEXTS)
    TokenCache(tmp_path, tokenizer).encode(TEXTS[:2])
    assert len(list(tmp_path.iterdir())) == 3  # by tokenizer and texts


def test_a_folder_that_cannot_be_written_costs_nothing_else(tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(token_cache, "_LEAST", 1)
    (tmp_path / "file").write_text("")
    assert len(TokenCache(tmp_path / "file", tokenizer).encode(TEXTS)) == 3
