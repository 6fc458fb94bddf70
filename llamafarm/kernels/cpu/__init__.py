"""Kernels in one pass each for a processor, in C++, compiled for it by the compiler that is there.

Plain torch reads and writes a tensor for each operation and starts its threads anew; these go through the
caches once. `attention`, `elementwise` and `loss` above have the plain forms, and come here where `choice`
finds that it works. `source/` has the C++, `build` compiles it, `library` calls it.
"""
