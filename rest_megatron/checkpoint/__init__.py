"""A run's own checkpoints: whole or not at all, chosen, and resumed from on any layout."""
