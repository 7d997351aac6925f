"""The few answers of a vLLM server that the engine needs, in this process, so that a test can make it misbehave."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeServer(ThreadingHTTPServer):
    """Samples the last prompt token again and again, with log-probability -0.5."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.version = "default"
        self.settings: dict[str, Any] = {"dtype": "torch.float32", "logprobs_mode": "processed_logprobs"}
        self.settings["max_model_len"] = 64
        self.loaded: list[str] = []
        self.requests = 0
        self.broken: tuple[str, int] = ("", 0)
        """A path, and how many of the next requests to it are broken off without an answer."""
        self.failing = ""
        """A path that is answered with 500, as by vLLM: the connection is kept, and breaks at its next request."""
        self.lose_weights_at: int | None = None
        """Number of the generate request before which a restart happens; -1: every time."""
        self.stopped = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        self.stopped = True
        self.shutdown()
        self.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/health":
            return {}
        if path == "/server_info":
            return {"vllm_config": {"model_config": self.settings}}
        if path == "/weight_info":
            return {"weight_version": self.version}
        if path == "/update_weight_version":
            self.version = body["new_version"]
            return {}
        if path == "/collective_rpc":
            self.loaded += [body["kwargs"]["weights_path"]] if body["method"] == "reload_weights" else []
            return {"results": [None]}
        if path == "/reset_prefix_cache":
            return {"success": True}
        if path == "/inference/v1/generate":
            return self.generate(body)
        return None

    def generate(self, body: dict[str, Any]) -> Any:
        self.requests += 1
        if self.lose_weights_at in (-1, self.requests):
            self.version = "default"
        params, token = body["sampling_params"], body["token_ids"][-1]
        count = params["max_tokens"]
        choice = {
            "token_ids": [token] * count,
            "logprobs": {"content": [{"token_id": token, "logprob": -0.5}] * count},
            "finish_reason": "length",
            "weight_versions": [{"version": self.version, "start": 0, "end": count}],
        }
        return {"choices": [choice | {"index": index} for index in range(params["n"])]}


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: FakeServer
    failed = False

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self._answer(json.loads(content) if content else {})

    def _answer(self, body: dict[str, Any]) -> None:
        path = self.path.partition("?")[0]
        breaking, left = self.server.broken
        if path == breaking and left > 0:
            self.server.broken = (breaking, left - 1)
            self.close_connection = True
            return
        if self.failed or self.server.stopped:
            self.close_connection = True
            return
        if path == self.server.failing:
            self.failed = True
            self._send(500, {"error": "failed"})
            return
        found = self.server.answer(path, body)
        self._send(*((404, {"error": "no such path"}) if found is None else (200, found)))

    def _send(self, status: int, answer: Any) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Quiet."""
