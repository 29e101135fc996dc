"""The parts of make_random_gguf.py.

shapes.py     the numbers of a model, what each architecture has, well-known shapes
weights.py    every tensor of a model, and its random values
vocab.py      a small vocabulary, or another file's
"""
