"""Answers sampled from the actor's current weights, behind one protocol."""
