"""What the live view of a run draws on a terminal."""
