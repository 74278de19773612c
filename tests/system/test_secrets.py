"""Secrets planted wherever a run may be given one are in no file it writes and in nothing it prints."""

import http.server
import json
import threading

import pytest

from tests.faults.jobs import Job
from tests.system.runs import make_run, program, run

SECRET = "hunter2-0123456789abcdef0123456789abcdef"
# wandb takes a key of 40 hexadecimal digits alone.
WANDB_KEY = "0123456789abcdef0123456789abcdef01234567"
VARIABLES = {
    "WANDB_API_KEY": WANDB_KEY,
    "OPENAI_API_KEY": SECRET,
    "VLLM_API_KEY": SECRET,
    "HF_TOKEN": SECRET,
    "MY_SERVICE_PASSWORD": SECRET,
}
# DeepSpeed ignores what it does not know; these names are what people call such things.
DEEPSPEED = {
    "api_key": SECRET,
    "token": SECRET,
    "password": SECRET,
    "monitor": {"client_secret": SECRET, "url": f"https://user:{SECRET}@host/path"},
}


class _Judge(http.server.BaseHTTPRequestHandler):
    """Grades with a 5 and says back what it was sent."""

    def do_POST(self):
        self.server.seen.append(self.headers.get("authorization", ""))
        self.rfile.read(int(self.headers["content-length"]))
        reply = json.dumps({"choices": [{"message": {"content": "5"}}], "echo": dict(self.headers)}).encode()
        self.send_response(200 if len(self.server.seen) % 2 else 401, f"denied {self.headers['authorization']}")
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


@pytest.fixture
def judge():
    """A judge that refuses every other question, echoing the key it was asked with."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Judge)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def holding(directory, secrets) -> list[str]:
    """The files that hold one of the secrets, in their bytes or in their names."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [str(path) for path in files for s in secrets if s.encode() in path.read_bytes() or s in str(path)]


def planted(tmp_path, judge) -> list[str]:
    """The overrides of a run with secrets in its DeepSpeed section and in a URL."""
    (tmp_path / "ds.json").write_text(json.dumps(DEEPSPEED))
    return [
        *make_run(tmp_path),
        f"deepspeed={tmp_path / 'ds.json'}",
        f"reward.judge_url=http://user:{SECRET}@127.0.0.1:{judge.server_port}/v1",
        "reward.judge_model=critic",
        "reward.judge_weight=1",
    ]


def test_a_run_keeps_its_secrets(tmp_path, judge):
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    logs = ["log.wandb=offline", "log.tensorboard=true", "checkpoint.interval=1"]
    # Of the user's own directories wandb, Hugging Face and matplotlib make use, too.
    home = tmp_path / "home"
    home.mkdir()
    words = program("train", *planted(tmp_path, judge), *logs)
    done = run(words, tmp_path, **VARIABLES, HOME=str(home), XDG_CACHE_HOME=str(home), WANDB_DIR=str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert judge.seen
    run_dir = tmp_path / "run"
    written = {path.name for path in run_dir.rglob("*")}
    assert {"config.yaml", "metrics.jsonl", "step-2.jsonl", "report.html", "tensorboard", "checkpoints"} <= written
    assert any(name.endswith(".wandb") for name in written)
    secrets = (SECRET, WANDB_KEY)
    assert holding(run_dir, secrets) == [] == holding(home, secrets)
    assert not any(secret in done.stdout + done.stderr for secret in secrets)


@pytest.mark.parametrize(
    "override, code",
    [
        ("optim.lr=-1", 2),
        ("model.path=nowhere", 2),
        (f"optim.api_key={SECRET}", 2),
        (f"data.train=https://user:{SECRET}@host/rows.jsonl", 2),
        (f"run.dir=/dev/null/https://user:{SECRET}@host", 2),
        (f"checkpoint.resume=https://user:{SECRET}@host/step-00000001", 4),
        (f"deepspeed={{zero_optimization: {{stage: 3}}, api_key: {SECRET}}}", 2),
        (f"reward.judge_url=ftp://user:{SECRET}@host", 2),
        (f"rollout={{engine: vllm, vllm_url: 'http://user:{SECRET}@host:8000'}}", 2),
        ("rollout={engine: vllm, vllm_url: 'http://127.0.0.1:9'}", 5),
    ],
)
def test_what_is_refused_is_named_without_them(tmp_path, judge, override, code):
    job = Job(["train", *planted(tmp_path, judge), override], tmp_path, variables=VARIABLES)
    assert job.wait() == [code], job.output()
    assert override.partition("=")[0].partition(".")[0] in job.output() or "127.0.0.1:9" in job.output()
    assert SECRET not in job.output()
    assert not (tmp_path / "run").exists() or holding(tmp_path / "run", (SECRET,)) == []
