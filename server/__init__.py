"""The HTTP server: OpenAI's, Anthropic's and llama.cpp's routes on `pyllama_long.engine`."""
