"""Runs that are killed, signalled, starved and damaged, and what must be left of them."""
