"""Weights on disk: Hugging Face safetensors in and out of any parallel layout."""
