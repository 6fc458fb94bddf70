"""One file per verb: unpack the options, call what does the work, print what came of it. No logic.

What does the work is imported inside the functions: it brings torch along, and `--help` must not.
"""
