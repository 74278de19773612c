"""The policy being trained: a Megatron GPTModel under a DeepSpeed ZeRO engine."""
