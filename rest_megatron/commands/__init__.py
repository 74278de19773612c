"""Commands over files of rows: no model, no process group."""
