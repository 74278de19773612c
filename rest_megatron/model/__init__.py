"""A Hugging Face model as Megatron shards, and back."""
