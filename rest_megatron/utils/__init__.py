"""Files, locks, waiting and the user's own code: what every part may use."""
