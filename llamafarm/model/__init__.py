"""The model of a run.

The base and its tokenizer (`load`), its prompt template (`prompt`), a pack through it (`forward`), the
adapter on it (`adapter`), and the folder that a run leaves (`bundle`).
"""
