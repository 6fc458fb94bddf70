"""llama.cpp's server in a process of its own: a file that breaks it breaks nothing else.

Started by `llamacpp`, with one JSON object on stdin: what to load and how. It prints the server's address,
and ends when stdin is closed, as it is when the process that started it dies. Nothing of torch is loaded.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Load a model, serve it on this machine, and wait for the end of stdin."""
    import xllamacpp

    wanted = json.loads(sys.stdin.readline())
    params = xllamacpp.CommonParams()
    params.model.path = wanted["model"]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [wanted["api_key"]]
    params.cors_origins = "http://127.0.0.1"
    params.ui = False
    params.verbosity = 0
    params.n_parallel = 1
    params.n_ctx = wanted["context_tokens"]
    params.warmup = False
    if wanted["is_exact"]:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_ram_mib = 0
    if wanted["gpu_layers"] is not None:
        params.n_gpu_layers = wanted["gpu_layers"]
    if wanted["num_threads"] is not None:
        params.cpuparams.n_threads = wanted["num_threads"]
    if wanted["adapter"] is not None:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = wanted["adapter"], 1.0
        params.lora_adapters = [adapter]
    server = xllamacpp.Server(params)
    print(json.dumps({"address": server.listening_address}), flush=True)  # noqa: T201
    sys.stdin.read()


if __name__ == "__main__":
    main()
