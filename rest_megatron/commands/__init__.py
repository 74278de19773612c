"""The commands: `catalogue` declares them, and each is run by the module of its name."""
