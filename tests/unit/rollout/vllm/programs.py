"""Programs in the place of python -m vllm, which note that they were started."""

from pathlib import Path

# Programs in place of `python -m vllm...`: what vLLM does when its arguments are wrong, when its engine fails to start,
# when it hangs, and when all is well. Each start is noted, so that restarts can be counted.
PREAMBLE = """
import os, sys, time
with open(os.environ["NOTES"], "a") as file:
    print(os.getpid(), file=file)
"""
REFUSES = "print('api_server.py: error: unrecognized arguments: --max-modl-len', file=sys.stderr); sys.exit(2)"
FAILS = """
print("(EngineCore pid=1) ERROR ValueError: No available memory for the cache blocks", flush=True)
for i in range(40): print("  File", i)
print("RuntimeError: Engine core initialization failed. See root cause above.")
sys.exit(1)
"""
HANGS = "print('loading', flush=True); time.sleep(600)"
ANSWERS = """
import socketserver
from http.server import BaseHTTPRequestHandler
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404); self.end_headers()
    def address_string(self): return ""
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer): pass
Server(sys.argv[sys.argv.index("--uds") + 1], Handler).serve_forever()
"""


def started(tmp_path: Path) -> list[int]:
    """Process ids of all servers so far, in order."""
    notes = tmp_path / "notes"
    return [int(line) for line in notes.read_text().split()] if notes.exists() else []


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
