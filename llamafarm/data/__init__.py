"""Data to tokens, along its flow.

Files become conversations (`reading`), some of which are left out or set apart (`selection`), and the rest
token ids with supervision marks, cut into packs (`encoding`).

`reading` and `selection` load without torch; `encoding` stands a floor higher.
"""
