"""Answers from a vLLM server that is given the actor's weights."""
