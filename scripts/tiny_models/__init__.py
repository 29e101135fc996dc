"""The parts of models_table.py.

library.py   upstream's tiny random models, out of its own test, which is compiled here
walk.py      what one context computes: chunks, decode, two sequences, a removed tail, a restored state
check.py     one model with upstream's two ways of attention and with the op
children.py  each model in a process of its own, which may crash
page.py      docs/models.md
"""
