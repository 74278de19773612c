"""Prompts and demonstrations from files, and the order in which training visits them."""
