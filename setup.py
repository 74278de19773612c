"""Where the packages lie; what they are is in pyproject.toml.

The kernels live apart, in kernels/rest_kernels, so that any trainer can use them.
"""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["rest_megatron", "rest_megatron.*"]) + find_packages("kernels"),
    package_dir={"rest_kernels": "kernels/rest_kernels"},
    package_data={
        "": ["py.typed", "templates/*", "*.txt"],
        # No package: vLLM's server imports the file by itself.
        "rest_megatron.rollout.vllm": ["worker/*.py"],
    },
)
