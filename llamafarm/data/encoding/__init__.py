"""Conversations to tokens: the template, what is trained on, lengths, packs."""
