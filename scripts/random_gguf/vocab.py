"""The vocabulary of a random model: a small one that reads any text, or another file's."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import gguf

from random_gguf.shapes import ShapeError

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def add_tokenizer(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """A SentencePiece vocabulary: bytes for any text, letters, pairs of letters and so on, ChatML marks."""
    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, kinds.CONTROL, kinds.CONTROL]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    types += [kinds.BYTE] * 256
    tokens += itertools.islice(_pieces(), n_vocab - len(tokens))
    types += [kinds.NORMAL] * (len(tokens) - len(types))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0 if kind != kinds.NORMAL else -float(i) for i, kind in enumerate(types)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(4)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHATML)


def _pieces() -> Iterator[str]:
    letters = "etaoinshrdlcumwfgypbvkjxqz"
    yield "▁"
    yield from letters
    yield from (chr(code) for code in range(33, 127) if chr(code) not in letters)
    yield from ("▁" + letter for letter in letters)
    for length in itertools.count(2):
        yield from ("".join(word) for word in itertools.product(letters, repeat=length))


def copy_tokenizer(writer: gguf.GGUFWriter, source: str | os.PathLike[str]) -> int:
    """Copies every tokenizer.* key of another GGUF file; returns its number of tokens."""
    reader = gguf.GGUFReader(source)
    fields = {name: field for name, field in reader.fields.items() if name.startswith("tokenizer.")}
    if "tokenizer.ggml.tokens" not in fields:
        raise ShapeError(f"{source} has no tokenizer to copy")
    for name, field in fields.items():
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub)
    return len(fields["tokenizer.ggml.tokens"].data)
