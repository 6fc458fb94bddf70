"""How the embedded base model and the demo data were made."""
