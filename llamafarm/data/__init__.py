"""Data to tokens.

A file becomes conversations (`records`), is cleaned and split (`corpus`), is rendered by one template
(`template`), becomes token ids with supervision marks (`encode`), and packs (`pack`).

`records` and `corpus` load without torch; the rest stand a floor higher.
"""
