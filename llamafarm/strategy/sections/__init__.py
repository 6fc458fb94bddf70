"""The sections of a strategy, by what they are about: `training`, `data`, `deployment`; `base` serves all.

Each field's docstring says what the field does and what it costs. It is the text of the generated reference
and of the JSON schema, so it is written for the reader of those.
"""
