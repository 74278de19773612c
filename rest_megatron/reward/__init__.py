"""Rule reward for tool calls: untrusted text -> calls (`parse`) -> score (`score`). No tool is ever executed."""
