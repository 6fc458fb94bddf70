"""What fits and what is worth it, by arithmetic on plain numbers; no torch here."""
