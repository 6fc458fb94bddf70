"""Everything that is settled and checked before the first step.

`prepare` tells it, `rows` has the data's part.
"""
