"""Trains a small model that finds numbers in long texts: the like of the embedded demo model.

corpus.py   any folder of text -> tokenizer, tokens, sentences, key words
tasks.py    training sequences: prose, and questions about numbers hidden in prose
model.py    the llama architecture as functions of named tensors, and its structured initial weights
train.py    the loop: Muon + AdamW, progress, checkpoints, Ctrl-C
export.py   GGUF files that llama.cpp loads
"""
