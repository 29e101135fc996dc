"""Fields of requests that have no effect on this server: refused by name, or named in a header of the answer."""

from __future__ import annotations

import re
from collections.abc import Container
from itertools import islice
from typing import Any

from fastapi import Request
from pydantic import BaseModel

from . import unread
from .errors import bad

HEADER = "X-Ignored-Fields"
_MAX_NAMES = 32  # names in the header
_MAX_CHARS = 96  # characters of one name
_MAX_LOOKS = 10_000  # fields whose values are looked at
_NAME = re.compile(r"[^A-Za-z0-9_.\[\]-]")
_FORMAT = "give response_format, json_schema or grammar where the route has it"

# Fields that would change the answer, with the values at which they do not, and what to do instead.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    # llama-server
    "post_sampling_probs": ((), "leave it out: probabilities are of before sampling"),
    "n_indent": ((0,), "leave it out"),
    "lora": ((), "start the server with the adapter"),
    "image_data": ((), "this model reads text"),
    "multimodal_data": ((), "this model reads text"),
    "n_predict": ((-1,), "use max_tokens on this route"),
    "n_probs": ((0,), "use logprobs on this route"),
    "json_schema": ((), "use response_format of a chat, or json_schema of /completion"),
    "response_format": (({"type": "text"},), "use a chat, or json_schema of /completion"),
    "ignore_eos": ((), "use /completion"),
    "continue_final_message": ((), "end the messages with an assistant's"),
    "adaptive_target": ((-1,), "leave it out"),
    "logit_bias": ((), "use it on the other routes"),
    # vLLM, SGLang, TGI
    **dict.fromkeys(
        "guided_json guided_regex guided_choice guided_grammar structured_outputs structural_tag regex ebnf "
        "guided_decoding_backend guided_whitespace_pattern".split(),
        ((), _FORMAT),
    ),
    "repetition_penalty": ((1,), "use repeat_penalty"),
    "typ_p": ((1,), "use typical_p"),
    "min_tokens": ((0,), "leave it out"),
    "min_new_tokens": ((0,), "leave it out"),
    "stop_token_ids": ((), "use stop"),
    "bad_words": ((), "use logit_bias"),
    "allowed_token_ids": ((), "use logit_bias or grammar"),
    "use_beam_search": ((), "leave it out"),
    "length_penalty": ((1,), "leave it out"),
    "prompt_logprobs": ((), "use echo with logprobs of /v1/completions"),
    "include_stop_str_in_output": ((), "leave it out"),
    "no_stop_trim": ((), "leave it out"),
    "skip_special_tokens": ((True,), "leave it out"),
    "truncate_prompt_tokens": ((), "use overflow"),
    "logits_processors": ((), "leave it out"),
    "top_a": ((0,), "leave it out"),
    "tfs_z": ((1,), "leave it out"),
    "chat_template": ((), "the model's own is used"),
    "chat_template_kwargs": ((), "use it in a chat"),
    "documents": ((), "put them into the messages"),
    "add_generation_prompt": ((True,), "leave it out"),
    # OpenAI, Anthropic
    "modalities": ((["text"],), "this model writes text"),
    "audio": ((), "this model writes text"),
    "functions": ((), "use tools"),
    "function_call": (("none", "auto"), "use tool_choice"),
    "web_search_options": ((), "this server looks nothing up"),
    "conversation": ((), "this server keeps no conversations; send the messages"),
    "prompt": ((), "this server keeps no prompts; send the text"),
    "mcp_servers": ((), "this server calls no others"),
    "container": ((), "this server runs no code"),
    "output_format": ((), "use output_config.format"),
    "n": ((1,), "this route gives one answer"),
    "best_of": ((1,), "this route gives one answer"),
    "stop": ((), "this route has another name for it, or none"),
    "grammar": ((), "use a chat or /completion"),
    "max_tool_calls": ((), "leave it out"),
}
SENT = "pyllama_long.sent"  # key in a request's scope for its JSON, until `check` has used it


def check(request: BaseModel, http: Request, others: Container[str] = ()) -> None:
    """Raises ApiError for a field that would change the answer. Other fields that this route does not know, and those
    inside objects that nothing reads, are named in a header of the answer. others: fields of the route that makes the
    whole answer, if this one only makes a part."""
    found = []
    extra = request.model_extra or {}
    for name in extra.keys() if len(extra) <= _MAX_LOOKS else extra.keys() & _REFUSED.keys():
        value = extra[name]
        if unread.is_nothing(value):
            continue
        neutral, advice = _REFUSED.get(name, (None, "")) if name not in others else (None, "")
        if neutral is None:
            found.append(name)
        elif not any(value == one and (type(value) is bool) == (type(one) is bool) for one in neutral):
            raise bad(f"{name}: this server does not know it here: {advice}.", name, "unsupported_parameter")
    if len(extra) > _MAX_LOOKS:
        found = [*islice(extra, _MAX_NAMES), unread.MORE]
    ignored(http, *found, *unread.inside(request, http.scope.pop(SENT, None)))


def ignored(http: Request, *names: str) -> None:
    """Adds names to the answer's header."""
    http.scope.setdefault("ignored", []).extend(names)


def header(http: Request) -> str | None:
    """The header's value, of ASCII only."""
    found = dict.fromkeys(_NAME.sub("?", name[:_MAX_CHARS]) or "?" for name in http.scope.get("ignored", ()))
    cut = found.pop(unread.MORE, "") is None
    names = list(found)
    more = [unread.MORE] if cut or len(names) > _MAX_NAMES else []
    return ", ".join(names[:_MAX_NAMES] + more) or None
