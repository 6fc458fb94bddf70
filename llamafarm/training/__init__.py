"""The training of a run, told top to bottom in `run`.

What is settled before it (`prepare`, `rows`), when what happens (`loop`), what that means here (`session`),
one step (`step`), the optimizer, checkpoints and records.
"""
