"""How good a model is.

Loss and perplexity on held-out rows (`loss`), answers against expected ones (`answers`), and both for a base
beside its tuned model (`evaluate`).
"""
