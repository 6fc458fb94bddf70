"""A run's record made into a page, a model card, and a comparison of several runs.

`record` reads a run's folder, `facts/` says what follows from it, `plot` draws, `page`, `card` and `compare`
write. Everything read is untrusted: text is cleaned in `values` and escaped by the templates. No torch.
"""
