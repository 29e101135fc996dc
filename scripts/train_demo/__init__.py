"""Trains a small model that finds numbers in long texts, like the embedded demo model.

corpus.py   any folder of text -> tokenizer, tokens, sentences, key words
tasks.py    training sequences: prose, and tasks whose answer is in the context
needles.py  the chats among them; writer.py their tokens with weights
model.py    the llama architecture as functions of named tensors, and its structured initial weights
dilated.py  LongNet's dilated attention as a matrix
train.py    the loop: Muon + AdamW, progress, checkpoints, Ctrl-C
export.py   GGUF files that llama.cpp loads
"""
