"""Package metadata. The kernels live apart, in kernels/rest_kernels, so that any trainer can use them."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

REQUIRED = [
    "torch>=2.11",
    "triton>=3.6; platform_system == 'Linux'",
    "megatron-core>=0.16.1,<0.17",
    "deepspeed>=0.19.8,<0.20",
    "transformers>=5.17,<6",
    "tokenizers",
    "httpx",
    "safetensors",
    "numpy",
    "scipy",
    "jinja2",
    "markupsafe",
    "pyarrow",
    "pyyaml",
    "matplotlib",
]
LOGGING = ["wandb", "tensorboard"]
EXTRAS = {
    "log": LOGGING,
    # A rollout server of its own; install it in a second environment.
    "vllm": ["vllm>=0.32,<0.34"],
    # Scoring with BFCL's checker: `pip install --no-deps bfcl-eval` beside this, its own pins clash with torch's.
    "eval": ["mpmath"],
    # Fused AdamW on CUDA. The package called apex on the Python Package Index is another one.
    "apex": ["apex @ git+https://github.com/NVIDIA/apex.git"],
    # Peers of benchmarks/kernels.py, see benchmarks/README.md for those that do not install beside the rest.
    "bench": ["liger-kernel==0.8.5", "trl==1.16.0", "cut-cross-entropy==25.1.1"],
    "dev": ["pytest", "pytest-timeout", "pytest-xdist", "ruff", "mypy", "types-PyYAML", "import-linter", "pre-commit", *LOGGING],
}

setup(
    name="rest_megatron",
    version="0.1.0",
    description="Tool-use reinforcement learning (ResT) on Megatron-core and DeepSpeed ZeRO",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=["rest_megatron", "rest_megatron.*"]) + find_packages("kernels"),
    package_data={
        "rest_megatron.data": ["templates/*.jinja"],
        "rest_megatron.observe": ["templates/*.html.jinja"],
        "rest_megatron.data.convert": ["*.txt"],
        # No package: vLLM's server imports the file by itself.
        "rest_megatron.rollout.vllm": ["worker/*.py"],
    },
    package_dir={"rest_kernels": "kernels/rest_kernels"},
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["rest_megatron=rest_megatron.cli:main"]},
)
