"""Data files of every kind as rows: one module for each kind, and `files`, which knows them all.

A row is a mapping with the number of the line or row it stands on. What a row means is in `formats`, and
`records` makes a conversation of it.
"""
