"""What a strategy may say (`schema.py`, `sections/`) and how a strategy file becomes one (`load.py`).

`document.py` reads YAML into values that know their line, `layout.py` brings the shapes a file may have to
one, `faults.py` turns what is wrong into sentences, `load.py` joins them. Loads without torch.
"""
