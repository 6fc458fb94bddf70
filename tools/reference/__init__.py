"""The generated pages of the documentation, a module for each; `write_reference.py` puts them in place."""
