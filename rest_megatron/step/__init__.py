"""One training step, part by part."""
