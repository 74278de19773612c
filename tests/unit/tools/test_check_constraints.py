"""The check of the pinned versions: what it lets pass, what it refuses, and what it says without an index."""

import io
import tomllib
from importlib.metadata import requires, version

import pytest

from tests.paths import ROOT
from tests.unit.tools.index import add_wheel, serve
from tools.check_constraints import BUILDS, ENVIRONMENTS, PYPI, PYTHONS, main, unreachable

CUDA_BUILD = ["nvidia-everything", "triton==3.7.1; platform_system == 'Linux'"]
CPU_BUILD = ROOT / "tools" / "torch_cpu.toml"
FAILED = "DOES NOT RESOLVE"


def cpu_requirements() -> list[str]:
    return tomllib.loads(CPU_BUILD.read_text())["dependency-metadata"][0]["requires-dist"]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """PyPI in small: both builds' requirements, and torch for CUDA."""
    directory = tmp_path_factory.mktemp("index")
    for requirement in cpu_requirements():
        name, _, lowest = requirement.partition(">=")
        add_wheel(directory / name, name.replace("-", "_"), lowest or "1.0")
    for triton in ("3.7.1", "3.9.0"):
        add_wheel(directory / "triton", "triton", triton)
    add_wheel(directory / "nvidia-everything", "nvidia_everything", "1.0")
    add_wheel(directory / "torch", "torch", "2.13.0", [*cpu_requirements(), *CUDA_BUILD])
    with serve(directory) as url:
        yield url


def make_project(directory, triton: str):
    """A project that needs torch and Triton, with this one's files."""
    extras = "\n".join(f"{name} = []" for name in ENVIRONMENTS[0].extras)
    project = '[project]\nname = "p"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["torch", "triton"]\n'
    (directory / "tests" / "vllm").mkdir(parents=True)
    (directory / "pyproject.toml").write_text(f"{project}[project.optional-dependencies]\n{extras}\n")
    (directory / "tests" / "vllm" / "requirements.txt").write_text("torch\ntriton\n")
    for environment in ENVIRONMENTS:
        (directory / environment.constraints).write_text(f"torch==2.13.0\ntriton=={triton}\n")
    return directory


def check(*arguments: str) -> tuple[int, list[str]]:
    stream = io.StringIO()
    code = main(list(arguments), stream)
    return code, stream.getvalue().splitlines()


def test_versions_that_resolve_are_listed_for_every_environment_build_and_python(tmp_path, index):
    code, lines = check("--project", str(make_project(tmp_path, "3.7.1")), "--index", index)
    assert code == 0
    assert len(lines) == len(ENVIRONMENTS) * len(BUILDS) * len(PYTHONS)
    assert ".venv, torch for CUDA, Python 3.11: 10 packages, torch 2.13.0, triton 3.7.1" in lines
    assert ".venv, torch for CPU, Python 3.12: 9 packages, torch 2.13.0, triton 3.7.1" in lines


def test_a_pin_that_only_the_cpu_build_allows_is_refused(tmp_path, index):
    code, lines = check("--project", str(make_project(tmp_path, "3.9.0")), "--index", index)
    assert code == 1
    assert [line for line in lines if line.endswith(FAILED)] == [
        f"{environment.name}, torch for CUDA, Python {python}: {FAILED}"
        for environment in ENVIRONMENTS
        for python in PYTHONS
    ]
    assert any("triton" in line and "3.7.1" in line and "3.9.0" in line for line in lines)


def test_a_cpu_build_on_this_machine_does_not_hide_the_cuda_build(tmp_path, index, monkeypatch):
    add_wheel(tmp_path / "wheels", "torch", "2.13.0+cpu", cpu_requirements())
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "wheels"))
    code, _ = check("--project", str(make_project(tmp_path / "project", "3.9.0")), "--index", index)
    assert code == 1


def test_an_index_that_does_not_answer_is_said_and_fails_nothing(tmp_path):
    code, lines = check("--project", str(make_project(tmp_path, "3.9.0")), "--index", "http://127.0.0.1:1")
    assert code == 0
    (line,) = lines
    assert line.startswith("constraints NOT CHECKED: http://127.0.0.1:1 cannot be reached (")


def test_pypi_s_torch_refuses_the_triton_that_was_pinned_before(tmp_path):
    if reason := unreachable(PYPI):
        pytest.skip(f"{PYPI} cannot be reached: {reason}")
    code, lines = check("--project", str(make_project(tmp_path, "3.9.0")))
    assert code == 1
    assert sum(line.endswith(FAILED) for line in lines) == len(ENVIRONMENTS) * len(PYTHONS)


def test_the_cpu_build_requires_what_is_written_down():
    if not version("torch").endswith("+cpu"):
        pytest.skip(f"torch {version('torch')} is no CPU build")
    assert [requirement for requirement in requires("torch") if "extra ==" not in requirement] == cpu_requirements()
