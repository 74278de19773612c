"""Reinforcement learning for tool use with ResT token weights (arXiv 2509.21826) on Megatron-core and DeepSpeed."""

__version__ = "0.1.0"
