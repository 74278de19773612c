"""An operator's server that shows its settings."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

CONFIG = ["data.max_prompt_tokens=100", "rollout.max_new_tokens=28", "rollout.engine=vllm"]
MODEL = {
    "logprobs_mode": "processed_logprobs",
    "dtype": "torch.bfloat16",
    "max_model_len": 128,
    "served_model_name": "policy",
    "generation_config": "vllm",
    "enable_sleep_mode": True,
}
SETTINGS = {"model_config": MODEL, "weight_transfer_config": {"backend": "rest_files"}}


@contextmanager
def operator(settings: dict, token: str = ""):
    """A server on TCP that shows these settings; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            allowed = not token or self.headers["authorization"] == f"Bearer {token}"
            reply = b"" if self.path == "/health" else json.dumps(settings).encode()
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_):
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
