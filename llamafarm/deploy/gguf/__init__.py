"""GGUF files, the format of llama.cpp and Ollama: what is in one, and how it is written.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the bytes of header and
metadata are written by the `gguf` library.
"""
