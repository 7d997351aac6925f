"""Stands in for `src/train.py`, Hydra, configs and sweeper included, but a trial writes records instead of training.

The value is best at `algorithm.loss.clip_high=0.3`. Environment: FAKE_PAUSE, seconds a rollout step; FAKE_FAIL; and
FAKE_HANG, for good after nine rollout steps if the clip is below the default.
"""

import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def train(config):
    raise AssertionError("trials are processes of their own")


def trial() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    folder = Path(given["hydra.run.dir"].strip("'"))
    quality = 1 - abs(float(given["algorithm.loss.clip_high"]) - 0.3)
    if os.environ.get("FAKE_FAIL"):
        sys.exit("no such luck")
    with (folder / "metrics.jsonl").open("w") as lines:
        for step in range(12):
            hangs = os.environ.get("FAKE_HANG") and step == 9 and quality < 0.9
            time.sleep(600 if hangs else float(os.environ.get("FAKE_PAUSE", "0")))
            event = {"event": "rollout_step", "rollout_step": step, "reward/exact_match": quality * step / 12}
            lines.write(json.dumps(event) + "\n")
            lines.flush()
    (folder / "argv.json").write_text(json.dumps(sys.argv[1:]))
    (folder / "summary.json").write_text(json.dumps({"final": {"val/exact_match": quality}}))


if __name__ == "__main__":
    if "hydra.mode=RUN" in sys.argv:
        trial()
    else:
        import hydra

        sys.path[:0] = [str(ROOT), str(ROOT / "src/wings/sweeping")]
        os.environ["PROJECT_ROOT"] = str(ROOT)
        hydra.main(version_base="1.3", config_path="../../../configs", config_name="train.yaml")(train)()
