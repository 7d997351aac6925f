"""One training from its config: what is read, and how often."""

from src.data.sources import base
from src.train import train
from tests.conftest import SMALL, published_corpus, train_config


def test_a_corpus_that_warms_up_and_trains_is_read_once(random_policy, tmp_path, monkeypatch):
    reads = []
    read = base.read_records
    monkeypatch.setattr(base, "read_records", lambda *source: reads.append(source) or read(*source))
    corpus = published_corpus(tmp_path / "rlla.json", 12)
    small = [override for override in SMALL if not override.startswith("data.train.")]
    settings = ("data=rlla", f"data.path={corpus}", "data.train.val_share=0.25", "prompt.layout=published", *small)
    train(
        train_config(tmp_path / "run", *settings, "warm_start=sft", "data.limit_val=1", f"policy.path={random_policy}")
    )
    assert len(reads) == 1
