"""The model of a run: the base and its tokenizer (`load`), a pack through it (`forward`), the adapter on it
(`adapter`).
"""
