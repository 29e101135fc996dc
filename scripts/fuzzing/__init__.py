"""Parts of fuzz_gguf.py and fuzz_seq.py."""
