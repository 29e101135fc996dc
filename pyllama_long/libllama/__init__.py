"""The native library. ctypes is imported here and by the child of probe.py only; `pyllama_long._native` is the face.

Names follow ggml_ext.h and plong_llama.h, which say what everything means.

library.py    llama_cpp made to load our library; its functions with their types, and a check that it is ours
structs.py    C structs, and plans and policies as such
plans.py      what the C code computes for plans and policies
work.py       the work of a batch: tiles, key ranges, readers
arrays.py     memory for C functions: NumPy arrays, batches, candidates
contexts.py   settings and statistics of a llama_context
isas.py       instruction sets
"""
