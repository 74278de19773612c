"""`method`, `reward` and `grammar` serve any trainer: they load where neither Megatron nor DeepSpeed is installed."""

import subprocess
import sys

BLOCKED = ("megatron", "deepspeed", "transformers")
SCRIPT = """
import importlib, pkgutil, sys

BLOCKED = sys.argv[1].split(",")

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
for package in sys.argv[2:]:
    found = importlib.import_module(package)
    for module in pkgutil.walk_packages(getattr(found, "__path__", ()), f"{package}."):
        importlib.import_module(module.name)
        print(module.name)
"""


def load(*packages: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", SCRIPT, ",".join(BLOCKED), *packages], capture_output=True, text=True)


def test_every_module_loads_without_a_trainer():
    done = load("rest_megatron.grammar", "rest_megatron.method", "rest_megatron.reward")
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert {"rest_megatron.grammar.sections", "rest_megatron.method.weights", "rest_megatron.reward.paper"} <= {*loaded}


def test_what_needs_a_trainer_does_not_load_there():
    done = load("rest_megatron.model.model")
    assert done.returncode == 1 and "No module named" in done.stderr
