"""Answers from a model: `open` loads one to be asked, `generate` asks it through transformers."""
