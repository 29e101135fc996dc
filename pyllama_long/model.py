"""A loaded GGUF model, with errors that name the file and the reason, and tokenizing in linear time."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from pyllama_long import _native, interrupts, log
from pyllama_long._native import _internals, llama_cpp
from pyllama_long.errors import ModelError
from pyllama_long.gguf_file import GGUFError, GGUFFile, RepeatedToken, first_part, read_header
from pyllama_long.model_info import model_info
from pyllama_long.probe import Probed, probe
from pyllama_long.users import Users

_FAILED = -(2**31)  # llama_tokenize's code for an error whose reason is logged
_MAX_TEXT = 2**30  # bytes, since llama.cpp counts in 32 bits
_MAPPED = 32  # bytes: llama.cpp ends the process if mapped weights do not begin at a multiple
_COPIED = {
    llama_cpp.LLAMA_LOAD_MODE_MMAP: llama_cpp.LLAMA_LOAD_MODE_NONE,
    llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK: llama_cpp.LLAMA_LOAD_MODE_MLOCK,
}
_F = TypeVar("_F", bound=Callable[..., Any])


def _held(method: _F) -> _F:
    """Decorates a method of Model so that the model is not freed during it. Raises RuntimeError if it already is."""

    @wraps(method)
    def call(self: Model, *args: Any, **kwargs: Any) -> Any:
        with self.using():
            return method(self, *args, **kwargs)

    return cast(_F, call)


class Model(_internals.LlamaModel):
    """llama_cpp's model object with its own loading, tokenizing and metadata.

    context: the parameters of its contexts, on which `takes` depends. overrides: those of params, as bytes. Any part
    of a split model stands for all of them. Methods may be called from any thread, even while another one closes it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        params: llama_cpp.llama_model_params,
        verbose: bool = False,
        context: llama_cpp.llama_context_params | None = None,
        overrides: bytes = b"",
    ) -> None:
        self.params, self.verbose = params, verbose
        self._users = Users(lambda: RuntimeError("this LongLlama is closed"))
        self._exit_stack = ExitStack()
        self.sampler, self.custom_samplers = None, []
        self._pieces: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})
        self.file, wrong = _header(path)
        self.path_model = path = os.fspath(self.file)
        self.takes: Probed = probe(path, context, overrides=overrides)
        if self.file.alignment < _MAPPED:
            params.load_mode = _COPIED.get(params.load_mode, params.load_mode)
        log.forget()
        with interrupts.deferred() as pressed:
            given: Any = params.progress_callback
            if not given:
                params.progress_callback = _native.progress_callback(lambda _share: not pressed())
            self.model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
            if self.model:
                self._exit_stack.callback(self._users.end, self._free)
        if not self.model:
            reason = log.complaint()
            damaged = any(word in reason for word in ("key-value", "file size", "file bounds", "corrupt"))
            hint = ": the file is damaged or cut off, download it again" if damaged else ""
            raise ModelError(f"cannot load {path}: {reason}{hint}")
        if wrong:
            self._exit_stack.close()
            raise ModelError(f"cannot load {path}: {wrong}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        if llama_cpp.llama_vocab_type(self.vocab) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
            self._exit_stack.close()
            raise ModelError(f"cannot use {path}: it has no vocabulary (tokenizer.ggml.model is 'none')")

    def _free(self) -> None:
        llama_cpp.llama_model_free(self.model)
        self.model = self.vocab = None
        self._pieces = ({}, {})

    def using(self) -> AbstractContextManager[None]:
        """For users of `model` or `vocab`: keeps them from being freed within the block. Raises RuntimeError after
        `close`."""
        return self._users.use()

    @_held
    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        """Token ids of UTF-8 text; special: names of control tokens in the text become those tokens."""
        if len(text) > _MAX_TEXT:
            raise ValueError(f"a text of {len(text)} bytes is longer than {_MAX_TEXT}")
        size = len(text) + 16  # no tokenizer gives more tokens than bytes, besides BOS and EOS
        failed = False
        while True:
            ids = np.empty(size, np.int32)
            pointer = _native.token_pointer(ids)
            n = llama_cpp.llama_tokenize(self.vocab, text, len(text), pointer, size, add_bos, special)
            if n >= 0 and (n == 0 or ids[:n].min() >= 0):
                return [int(i) for i in ids[:n].tolist()]
            if n == _FAILED and not failed:  # tokenizes again for the reason, since all threads share the log
                failed = True
                log.forget()
                continue
            if -n <= size or n == _FAILED:
                reason = "the vocabulary has no token for a part of it" if n >= 0 else log.complaint()
                raise ValueError(f"cannot tokenize a text of {len(text)} bytes: {reason}")
            size = -n

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes of one token, which may be part of a character; special: also for control tokens."""
        known = self._pieces[special]
        found = known.get(token)
        if found is None:
            found = known[token] = self._read_piece(token, special)
        return found

    @_held
    def _read_piece(self, token: int, special: bool) -> bytes:
        if not 0 <= token < self.n_vocab():
            raise ValueError(f"token {token} is outside the vocabulary of {self.n_vocab()}")
        buffer, n = _native.char_buffer(64), 64
        n = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, 64, 0, special)
        if n < 0:
            buffer = _native.char_buffer(-n)
            n = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, -n, 0, special)
        return bytes(buffer.raw[:n])

    def token_to_piece(self, token: int, special: bool = False) -> bytes:
        return self.piece(token, special)

    @_held
    def detokenize(self, tokens: list[int], special: bool = False) -> bytes:
        """The text of tokens, without a space that the tokenizer put after a leading BOS."""
        text = b"".join([self.piece(int(token), special) for token in tokens])
        leading = len(tokens) > 0 and tokens[0] == self.token_bos()
        return text.removeprefix(b" ") if leading else text

    @_held
    def metadata(self) -> dict[str, str]:
        """The GGUF's scalar keys and their values as text."""

        def read(function: object, i: int) -> str:
            size = 256
            while True:
                buffer = _native.char_buffer(size)
                n: int = function(self.model, i, buffer, size)  # type: ignore[operator]
                if n < size:
                    return bytes(buffer.value).decode(errors="replace")
                size = n + 1

        key, value = llama_cpp.llama_model_meta_key_by_index, llama_cpp.llama_model_meta_val_str_by_index
        return {read(key, i): read(value, i) for i in range(llama_cpp.llama_model_meta_count(self.model))}

    @_held
    def fill_marks(self) -> tuple[int, int, int] | None:
        """Tokens before the text before, the text after, and what fills the middle; None without them."""
        marks = (
            llama_cpp.llama_vocab_fim_pre(self.vocab),
            llama_cpp.llama_vocab_fim_suf(self.vocab),
            llama_cpp.llama_vocab_fim_mid(self.vocab),
        )
        return marks if min(marks) >= 0 else None

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        with self.using():
            return tuple(i for i in range(self.n_vocab()) if llama_cpp.llama_vocab_is_eog(self.vocab, i))

    @cached_property
    def control_tokens(self) -> npt.NDArray[np.bool_]:
        """Which tokens [n_vocab] are control tokens, as they stand between messages."""
        with self.using():
            found = [llama_cpp.llama_vocab_is_control(self.vocab, i) for i in range(self.n_vocab())]
            return np.array(found, np.bool_)

    @_held
    def has_rope(self) -> bool:
        return bool(llama_cpp.llama_model_rope_type(self.model) != llama_cpp.LLAMA_ROPE_TYPE_NONE)

    @_held
    def kv_bytes(self, n_ctx: int, bytes_per_value: float) -> int:
        """Size of the K and V cache if every layer keeps every token; 0 for models of other kinds."""
        special = llama_cpp.llama_model_is_recurrent(self.model) or llama_cpp.llama_model_is_hybrid(
            self.model
        )
        try:
            info = model_info(self.file)
        except GGUFError:
            return 0
        latent = f"{info.architecture}.attention.kv_lora_rank" in self.file.values
        if special or latent or llama_cpp.llama_model_n_swa(self.model):
            return 0
        return int(n_ctx * info.kv_values_per_token * bytes_per_value)


for _name, _method in vars(_internals.LlamaModel).items():
    if inspect.isfunction(_method) and not _name.startswith("_") and _name not in {*vars(Model), "close"}:
        setattr(Model, _name, _held(_method))


def _header(path: str | os.PathLike[str]) -> tuple[GGUFFile, str]:
    """The header of a model, or why it cannot be read; llama.cpp may have a better reason. Raises ModelError."""
    if isinstance(path, GGUFFile):
        return path, ""
    try:
        first = first_part(path)
    except GGUFError as error:
        raise ModelError(f"cannot load {path}: {error}") from None
    check_file(str(first))
    try:
        return read_header(first), ""
    except RepeatedToken as error:
        raise ModelError(str(error)) from None
    except GGUFError as error:
        return GGUFFile(first, 0, 0, {}, ()), str(error)


def check_file(path: str) -> None:
    """Raises ModelError for errors that can be found without llama.cpp: a missing, empty or foreign file."""
    file = Path(path)
    if not file.exists():
        raise ModelError(f"Model path does not exist: {path}")
    if not file.is_file():
        raise ModelError(f"{path} is not a file: give the path of a .gguf file")
    try:
        with file.open("rb") as f:
            head = f.read(8)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    if len(head) < 8:
        raise ModelError(f"{path} is {'empty' if not head else 'cut off'}: download it again")
    if head[:4] != b"GGUF":
        raise ModelError(
            f"{path} is not a GGUF file (it starts with {head[:4]!r}): convert or download a .gguf file"
        )
