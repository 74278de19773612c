"""Processes of a job: who runs, who must stop, and who speaks."""
