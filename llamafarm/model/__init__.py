"""The model of a run.

The base and its tokenizer (`load`, `hub`; `quantized` in 4 bits), its prompt template (`prompt`), a pack
through it (`forward`), what is trained of it (`adapter` on `targets`, started by `principal`; `full`; either
as `weights`), and the folder that a run leaves (`bundle`).
"""

import logging

# Where bitsandbytes is installed, PEFT imports it, and it warns of kernels that it would get from the Hub.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
