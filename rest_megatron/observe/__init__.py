"""What a run shows of itself: metrics files, progress lines, a report."""
