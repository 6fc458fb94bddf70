"""How good a model is.

One model on held-out rows (`measure`): loss of each row (`loss`), answers against expected ones (`answers`,
by `texts` and `repetition`), loss on general text (`general`). `evaluate` sets a base beside its tuned model
and says by `bootstrap` what is sure of the difference; `record` keeps it.
"""
