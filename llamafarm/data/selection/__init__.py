"""Which rows are trained on, which measured, and which left out: duplicates, quality, splits. No torch."""
