"""A stand-in for vLLM's server: the same routes, the same order of calls, answers sampled from the pushed weights.

It keeps what makes the real one unforgiving: a prefix cache that only a pause clears, weights that are unusable between
start and finish, an engine that dies when it samples from them. Faults are told to it call by call.
"""

import copy
import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from rest_megatron.rollout.vllm.client import Address
from tests.distributed.fake_faults import BAD_REPLIES, Fault
from tests.distributed.fake_http import Cut, Died, Failed, Handler, Listener

FAULT_TEXT = "the fake says: out of luck"
HANG_SECONDS = 60.0
PROBE_ANSWERS = (2, 4)


class FakeVLLM:
    """One server. `start` may be called again after `stop`, as a new process would.

    model: directory of the Hugging Face model; its weights are replaced by random ones at each start.
    uds: a Unix domain socket to listen on, else a free TCP port. modes: "stale_weights", "stale_prefix",
    "missing_tensor" (one tensor of every update is not loaded), "open_update" (a trainer died in the middle of one).
    calls: every call that came, in order.
    """

    def __init__(self, model: Path, uds: Path | None = None, faults: Sequence[Fault] = (), modes: Sequence[str] = ()):
        self.model_path, self.uds, self.faults, self.modes = model, uds, list(faults), frozenset(modes)
        self.calls: list[str] = []
        self.pushed: dict[str, torch.Tensor] = {}
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.start()

    def start(self) -> None:
        torch.manual_seed(99)
        config = AutoConfig.from_pretrained(self.model_path)
        self.model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        self.version, self.paused, self.failure = "default", False, None
        self.session = {} if "open_update" in self.modes else None
        self.usable, self.engine_dead, self.asleep = True, False, set()
        self.prefixes: dict[tuple, object] = {}
        self.stopped = threading.Event()
        self.connections: set[Handler] = set()
        self.server = Listener(self)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> Address:
        if self.uds is not None:
            return Address("http://localhost", self.uds)
        return Address(f"http://127.0.0.1:{self.server.server_address[1]}")

    def stop(self) -> None:
        """As if killed: nothing that is open gets an answer, nothing listens any more."""
        if self.stopped.is_set():
            return
        self.stopped.set()
        with self.changed:
            self.changed.notify_all()
        threading.Thread(target=self.server.shutdown, daemon=True).start()
        self.server.socket.close()
        for one in list(self.connections):
            one.close_now()
        if self.uds is not None:
            self.uds.unlink(missing_ok=True)

    def answer(self, method: str, target: str, body: dict) -> object:
        """The reply to one call."""
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        name = path
        if path == "/v1/completions":
            name = "probe" if body["n"] in PROBE_ANSWERS else "generate"
        if path == "/collective_rpc":
            name = body["method"]
        with self.lock:
            self.calls.append(name)
            kind = self._fault(name)
        if kind == "hang":
            self.stopped.wait(HANG_SECONDS)
            raise Died
        if kind == "die":
            self.stop()
            raise Died
        if kind == "error":
            raise Failed(500, FAULT_TEXT)
        if self.engine_dead:
            raise Failed(500, "EngineDeadError: see the stack trace above")
        reply = self._reply(method, path, query, body)
        if kind in BAD_REPLIES:
            reply["choices"] = BAD_REPLIES[kind](reply["choices"])
        if kind == "lost":
            self.stopped.wait(HANG_SECONDS)
            raise Died
        if kind == "unusable":
            self.failure = FAULT_TEXT
        if kind == "other_run":
            reply["weight_version"] = reply["weight_version"].partition("-")[0] + "-00000000"
        return Cut(reply) if kind == "close" else reply

    def _fault(self, name: str) -> str | None:
        for fault in self.faults:
            if fault.call == name and fault.times > 0:
                if fault.skip > 0:
                    fault.skip -= 1
                    return None
                fault.times -= 1
                return fault.kind
        return None

    def _reply(self, method: str, path: str, query: dict, body: dict) -> object:
        routes = {
            ("GET", "/health"): lambda: None,
            ("GET", "/weight_info"): lambda: {"weight_version": self.version},
            ("POST", "/pause"): lambda: self._pause(query),
            ("POST", "/resume"): self._resume,
            ("POST", "/collective_rpc"): lambda: {"results": [self._call_worker(body["method"])]},
            ("POST", "/start_weight_update"): self._start_update,
            ("POST", "/update_weights"): lambda: self._update(body["update_info"]),
            ("POST", "/finish_weight_update"): lambda: self._finish(body["weight_version"]),
            ("POST", "/sleep"): lambda: self._sleep(query),
            ("POST", "/wake_up"): lambda: self._wake(query["tags"]),
            ("POST", "/v1/completions"): lambda: self._complete(body),
        }
        if (method, path) not in routes:
            raise Failed(404, "Not Found")
        with self.changed:
            reply = routes[method, path]()
            self.changed.notify_all()
            return reply

    def _pause(self, query: dict) -> dict:
        if query["mode"] != ["wait"]:
            raise Failed(400, f"mode {query['mode']}")
        self.paused = True
        if query.get("clear_cache") == ["true"] and "stale_prefix" not in self.modes:
            self.prefixes.clear()
        return {"status": "paused"}

    def _resume(self) -> dict:
        self.paused = False
        return {"status": "resumed"}

    def _start_update(self) -> dict:
        if self.session is not None:
            raise Failed(500, "start_weight_update called while a weight update is already active.")
        if not self.paused or "weights" in self.asleep:
            raise Failed(500, "weights cannot be replaced now")
        self.session, self.usable, self.failure = {}, False, None
        return {}

    def _call_worker(self, method: str) -> str | None:
        if method == "abandon_weight_update":
            self.session = None
            return None
        return {"weight_update_failure": self.failure}[method]

    def _update(self, info: dict) -> dict:
        if self.session is None:
            raise Failed(500, "start_weight_update must be called before update_weights.")
        if hashlib.sha256(Path(info["path"]).read_bytes()).hexdigest() != info["sha256"]:
            self.failure = f"{info['path']}: wrong SHA-256"
        with safe_open(info["path"], framework="pt") as file:
            for name in file.keys():
                self.session.setdefault(name, []).append(file.get_tensor(name).clone())
        return {}

    def _finish(self, version: str) -> dict:
        if self.session is None:
            raise Failed(500, "finish_weight_update called without a matching start_weight_update.")
        self.pushed = {name: tensors[0] for name, tensors in self.session.items()}
        own = self.model.state_dict()
        fits = all(len(t) == 1 and n in own and own[n].shape == t[0].shape for n, t in self.session.items())
        self.session, self.version, self.usable = None, version, fits
        if fits and "stale_weights" not in self.modes:
            skipped = {"model.layers.2.self_attn.k_proj.weight"} if "missing_tensor" in self.modes else set()
            loaded = {name: tensor for name, tensor in self.pushed.items() if name not in skipped}
            self.model.load_state_dict(loaded, strict=False)
        return {}

    def _sleep(self, query: dict) -> dict:
        if query != {"level": ["2"], "mode": ["wait"]}:
            raise Failed(400, f"sleep {query}")
        self.paused, self.usable, self.asleep = True, False, {"weights", "kv_cache"}
        return {"status": "sleeping"}

    def _wake(self, tags: list[str]) -> dict:
        self.asleep -= set(tags)
        if not self.asleep:
            self.paused = False
        return {"status": "awake"}

    @torch.no_grad()
    def _complete(self, body: dict) -> dict:
        while self.paused:
            self.changed.wait()
            if self.stopped.is_set():
                raise Died
        if not self.usable or self.asleep or self.session is not None:
            self.engine_dead = True
            raise Failed(500, "EngineCore encountered an issue: tensor on device meta")
        if not body["return_token_ids"] or body["logprobs"] != 0 or not body["ignore_eos"]:
            raise Failed(400, "the fake only knows token ids with their log-probs")
        stops, limit, prompt = set(body["stop_token_ids"]), body["max_tokens"], body["prompt"]
        rows = self._draw(prompt, body["n"], limit, body["seed"], body["temperature"])
        choices = []
        for index, (ids, values) in enumerate(rows):
            end = next((i + 1 for i, token in enumerate(ids) if token in stops), limit)
            choices.append(
                {
                    "index": index,
                    "text": "",
                    "token_ids": ids[:end],
                    "prompt_token_ids": prompt,
                    "logprobs": {"token_logprobs": values[:end]},
                    "finish_reason": "stop" if ids[end - 1] in stops else "length",
                }
            )
        return {"object": "text_completion", "choices": choices[::-1]}

    def _draw(self, prompt: list[int], count: int, limit: int, seed: int, temperature: float) -> list[tuple]:
        """(ids, log-probs) of each answer, over the cached prefix when the prompt was seen before."""
        key = tuple(prompt)
        if len(prompt) > 1 and key not in self.prefixes:
            self.prefixes[key] = self.model(torch.tensor([prompt[:-1]]), use_cache=True).past_key_values
        past = copy.deepcopy(self.prefixes.get(key))
        if past is not None:
            past.batch_repeat_interleave(count)
        generators = [torch.Generator().manual_seed(seed + i) for i in range(count)]
        token = torch.full((count, 1), prompt[-1])
        ids, values = [], []
        for _ in range(limit):
            out = self.model(token, past_key_values=past, use_cache=True)
            past = out.past_key_values
            table = (out.logits[:, -1] / temperature).log_softmax(-1)
            drawn = [torch.multinomial(row.exp(), 1, generator=g) for row, g in zip(table, generators, strict=True)]
            token = torch.stack(drawn)
            ids.append(token.squeeze(1))
            values.append(table.gather(1, token).squeeze(1))
        return list(zip(torch.stack(ids, 1).tolist(), torch.stack(values, 1).tolist(), strict=True))


class FakeServer:
    """What the engine knows of a server, around a fake."""

    def __init__(self, fake: FakeVLLM, restartable: bool = True, can_sleep: bool = False):
        self.fake, self.restartable, self.can_sleep, self.restarts = fake, restartable, can_sleep, 0

    @property
    def address(self) -> Address:
        return self.fake.address

    def restart(self) -> None:
        self.restarts += 1
        self.fake.stop()
        self.fake.start()

    def log_tail(self) -> str:
        return "the last line of the fake's log" if self.restartable else ""
