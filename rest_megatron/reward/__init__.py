"""Rewards of answers: untrusted text -> calls (`parse`) -> a preset's score. No tool is ever executed."""
