"""Calls a LongLlama with arguments that nobody should pass, in a process of its own: it must not end by a signal or
hang, and the model must answer as before.

    python tests/hostile_calls.py METHOD [SHARE]

prints a line per call and, last, JSON. METHOD: a name of CALLS, or `constructor`. SHARE: the share of the calls, 1
for all.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import pyllama_long
from pyllama_long import LongLlama
from pyllama_long._native import LlamaGrammar

MODEL = str(Path(pyllama_long.__file__).parent / "data" / "demo.gguf")
PROMPT = "Captain Ahab stood upon the deck, and the crew"
TOKENS = list(range(300, 320))

VALUES: dict[str, Any] = {
    "None": None,
    "text": "many",
    "empty text": "",
    "bytes": b"many",
    "empty list": [],
    "dict": {},
    "object": object(),
    "0": 0,
    "-1": -1,
    "-2": -2,
    "2**31-1": 2**31 - 1,
    "2**31": 2**31,
    "-2**31": -(2**31),
    "2**32": 2**32,
    "2**63": 2**63,
    "-2**63-1": -(2**63) - 1,
    "10**400": 10**400,
    "True": True,
    "1.5": 1.5,
    "1e308": 1e308,
    "NaN": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "int64 3": np.int64(3),
    "int64 -1": np.int64(-1),
    "uint64 max": np.uint64(2**64 - 1),
    "float32": np.float32(0.5),
    "float16 NaN": np.float16("nan"),
    "bool_": np.bool_(True),
    "0-d": np.array(5),
    "empty array": np.array([]),
    "int64 array": np.array([300, 301], np.int64),
    "float array": np.array([300.0]),
    "2-d": np.array([[300, 301]]),
    "tokens": TOKENS,
    "bad token": [300, 10**6],
    "negative token": [-1],
    "huge token": [2**40],
    "[None]": [None],
    "texts": ["a", "b"],
    "[b'a']": [b"a"],
    "lone surrogate": "a\ud800b",
    "NUL": "a\0b",
    "long": "ab " * 3000,
}

SAMPLING = (
    "top_k top_p min_p typical_p temp repeat_penalty frequency_penalty presence_penalty tfs_z "
    "mirostat_mode mirostat_eta mirostat_tau penalize_nl logits_processor grammar"
).split()
COMPLETION = (
    "suffix max_tokens temperature top_p min_p typical_p logprobs echo stop frequency_penalty "
    "presence_penalty repeat_penalty top_k stream seed tfs_z mirostat_mode mirostat_tau mirostat_eta "
    "model stopping_criteria logits_processor grammar logit_bias tail"
).split()
CHAT = (
    "functions function_call tools tool_choice temperature top_p top_k min_p typical_p stream stop "
    "seed response_format max_tokens presence_penalty frequency_penalty repeat_penalty tfs_z "
    "mirostat_mode model logits_processor grammar logit_bias logprobs top_logprobs tail"
).split()
ATTRIBUTES = "n_tokens last_n_tokens_size draft_model cache _seed progress chat_format chat_handler".split()

MORE: list[tuple[str, Callable[[LongLlama], Any]]] = [
    ("no tokens counted", lambda m: (m.reset(), m.sample())),
    ("sample(idx=0) of one row", lambda m: (m.reset(), m.eval(TOKENS), m.sample(idx=0))),
    ("sample(idx=99)", lambda m: (m.reset(), m.eval(TOKENS), m.sample(idx=99))),
    ("sample(idx=n)", lambda m: (m.reset(), m.eval(TOKENS), m.sample(idx=len(TOKENS)))),
    (
        "a processor that forbids all",
        lambda m: m(PROMPT, max_tokens=2, logits_processor=lambda i, s: s * 0 - np.inf),
    ),
    ("a processor of NaN", lambda m: m(PROMPT, max_tokens=2, logits_processor=lambda i, s: s * np.nan)),
    ("a processor of one value", lambda m: m(PROMPT, max_tokens=2, logits_processor=lambda i, s: s[:1])),
    ("a processor of text", lambda m: m(PROMPT, max_tokens=2, logits_processor=lambda i, s: "x")),
    (
        "a processor that evaluates",
        lambda m: m(PROMPT, max_tokens=2, logits_processor=lambda i, s: m.eval([300])),
    ),
    ("a processor that closes", lambda m: m(PROMPT, max_tokens=2, logits_processor=lambda i, s: m.close())),
    ("criteria that reset", lambda m: m(PROMPT, max_tokens=2, stopping_criteria=lambda i, s: m.reset())),
    ("bias of a token that is none", lambda m: m(PROMPT, max_tokens=2, logit_bias={10**6: 1.0})),
    ("bias of NaN", lambda m: m(PROMPT, max_tokens=2, logit_bias={300: float("nan")})),
    ("bias of infinity", lambda m: m(PROMPT, max_tokens=2, logit_bias={300: float("inf")})),
    (
        "a grammar that is none",
        lambda m: m(PROMPT, max_tokens=2, grammar=LlamaGrammar.from_string("root ::= (")),
    ),
    (
        "a grammar without root",
        lambda m: m(PROMPT, max_tokens=2, grammar=LlamaGrammar.from_string('x ::= "a"')),
    ),
    (
        "a grammar with itself",
        lambda m: m(PROMPT, max_tokens=2, grammar=LlamaGrammar.from_string("root ::= root")),
    ),
    ("an empty grammar", lambda m: m(PROMPT, max_tokens=2, grammar=LlamaGrammar.from_string(""))),
    ("more tokens than the window", lambda m: m.eval(TOKENS * 100)),
    ("n_tokens beyond the cache", lambda m: (_set(m, "n_tokens", 200), m.eval([300]))),
    ("tail beyond the window", lambda m: m.set_tail(10**9)),
    ("a draft of text", lambda m: _with_draft(m, "x")),
    ("a draft of other tokens", lambda m: _with_draft(m, [10**6])),
    ("a draft of half tokens", lambda m: _with_draft(m, [1.5])),
    ("a draft of nothing", lambda m: _with_draft(m, None)),
]


def _with_draft(model: LongLlama, answer: Any) -> Any:
    model.draft_model = lambda ids: answer  # type: ignore[assignment]
    return model(PROMPT, max_tokens=2)


def _set(model: LongLlama, name: str, value: Any) -> bool:
    setattr(model, name, value)
    return True


def _attribute(name: str) -> Callable[[LongLlama, Any], Any]:
    return lambda m, v: _set(m, name, v) and m(PROMPT, max_tokens=2)


def _sample(name: str) -> Callable[[LongLlama, Any], Any]:
    return lambda m, v: m.sample(**{name: v})


def _without(call: Callable[[LongLlama], Any]) -> Callable[[LongLlama, Any], Any]:
    return lambda m, _v: call(m)


def _set_cache(model: LongLlama, value: Any) -> Any:
    model.set_cache(value)
    return model(PROMPT, max_tokens=2)


def _message(model: LongLlama, value: Any) -> Any:
    return model.create_chat_completion([{"role": "user", "content": value}], max_tokens=2)


CALLS: dict[str, list[tuple[str, Callable[[LongLlama, Any], Any]]]] = {
    "eval": [("tokens", lambda m, v: m.eval(v))],
    "sample": [(name, _sample(name)) for name in (*SAMPLING, "idx")],
    "generate": [
        ("tokens", lambda m, v: next(m.generate(v))),
        *(
            (name, lambda m, v, name=name: next(m.generate(TOKENS, **{name: v})))
            for name in (*SAMPLING, "stopping_criteria")
        ),
        ("reset", lambda m, v: next(m.generate(TOKENS, reset=v))),
    ],
    "create_completion": [
        ("prompt", lambda m, v: m(v, max_tokens=2)),
        *((name, lambda m, v, name=name: _complete(m, name, v)) for name in COMPLETION),
    ],
    "create_chat_completion": [
        ("messages", lambda m, v: m.create_chat_completion(v, max_tokens=2)),
        ("content", _message),
        *((name, lambda m, v, name=name: _chat(m, name, v)) for name in CHAT),
    ],
    "embed": [
        ("input", lambda m, v: m.embed(v)),
        ("create_embedding", lambda m, v: m.create_embedding(v)),
        *(
            (name, lambda m, v, name=name: m.embed("the sea", **{name: v}))
            for name in ("normalize", "truncate", "return_count")
        ),
    ],
    "tokens": [
        ("tokenize", lambda m, v: m.tokenize(v)),
        ("add_bos", lambda m, v: m.tokenize(b"the sea", add_bos=v)),
        ("special", lambda m, v: m.tokenize(b"the sea", special=v)),
        ("detokenize", lambda m, v: m.detokenize(v)),
        ("prev_tokens", lambda m, v: m.detokenize(TOKENS, prev_tokens=v)),
        ("encode", lambda m, v: m.tokenizer().encode(v)),
        ("decode", lambda m, v: m.tokenizer().decode(v)),
        ("longest_token_prefix", lambda m, v: m.longest_token_prefix(v, TOKENS)),
        ("logits_to_logprobs", lambda m, v: m.logits_to_logprobs(v)),
    ],
    "state": [
        ("load_state", lambda m, v: m.load_state(v)),
        *(
            (name, lambda m, v, name=name: _state(m, name, v))
            for name in ("input_ids", "n_tokens", "llama_state", "seed", "scores")
        ),
        ("set_cache", _set_cache),
        ("set_seed", lambda m, v: m.set_seed(v)),
        ("set_tail", lambda m, v: m.set_tail(v)),
        *((name, _attribute(name)) for name in ATTRIBUTES),
    ],
    "more": [(name, _without(call)) for name, call in MORE],
}
OPTIONS = (
    "n_ctx attention rope kv_type progress precision n_gpu_layers split_mode main_gpu tensor_split "
    "vocab_only use_mmap use_mlock kv_overrides seed n_batch n_ubatch n_threads n_threads_batch "
    "rope_scaling_type pooling_type attention_type rope_freq_base rope_freq_scale yarn_ext_factor "
    "yarn_attn_factor yarn_beta_fast yarn_beta_slow yarn_orig_ctx logits_all embedding offload_kqv "
    "flash_attn op_offload swa_full no_perf last_n_tokens_size lora_base lora_scale lora_path numa "
    "chat_format chat_handler draft_model tokenizer type_k type_v spm_infill"
).split()


def _complete(model: LongLlama, name: str, value: Any) -> Any:
    found = model(PROMPT, **{"max_tokens": 2, name: value})
    return found if isinstance(found, dict) else list(found)


def _chat(model: LongLlama, name: str, value: Any) -> Any:
    found = model.create_chat_completion(
        [{"role": "user", "content": "hello"}], **{"max_tokens": 2, name: value}
    )
    return found if isinstance(found, dict) else list(found)


def _state(model: LongLlama, name: str, value: Any) -> Any:
    model.reset()
    model.eval(TOKENS)
    state = model.save_state()
    setattr(state, name, value)
    model.load_state(state)
    return model(PROMPT, max_tokens=2)


def calls(method: str) -> Iterator[tuple[str, Callable[[LongLlama, Any], Any], Any]]:
    for what, call in CALLS[method]:
        if method == "more":
            yield what, call, None
            continue
        for name, value in VALUES.items():
            yield f"{what} = {name}", call, value


def new() -> LongLlama:
    threads: dict[str, Any] = {"n_threads": 1, "n_threads_batch": 1}
    return LongLlama(MODEL, n_ctx=256, n_batch=32, precision="f32", embedding=True, **threads)


def run(method: str, share: float) -> dict[str, Any]:
    """Makes the calls; after each of them the model must answer as at the beginning."""
    model, done, errors, wrong = new(), 0, 0, []
    expected = model(PROMPT, max_tokens=4, temperature=0)["choices"][0]["text"]
    plain = {name: getattr(model, name) for name in ATTRIBUTES if name != "n_tokens"}
    rng = np.random.default_rng(0)
    for what, call, argument in calls(method):
        if rng.random() >= share:
            continue
        print(what, end=" ", flush=True)
        done += 1
        try:
            call(model, argument)
            print("-> taken", flush=True)
        except Exception as error:
            errors += 1
            print(f"-> {type(error).__name__}: {str(error)[:150]}", flush=True)
        for name, value in plain.items():
            setattr(model, name, value)
        try:
            got = model(PROMPT, max_tokens=4, temperature=0)["choices"][0]["text"]
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
        if got != expected:
            wrong.append(f"{what}: {got}")
            model = new()
    return {"method": method, "calls": done, "errors": errors, "wrong": wrong}


def construct(share: float) -> dict[str, Any]:
    """Loads the model with each value of each option; if it loads, it must answer or say why it cannot."""
    done, errors = 0, 0
    rng = np.random.default_rng(0)
    for option in OPTIONS:
        for name, value in VALUES.items():
            if rng.random() >= share:
                continue
            print(f"{option} = {name}", end=" ", flush=True)
            done += 1
            child = os.fork()
            if child == 0:
                sys.stdout.flush()
                try:
                    options: dict[str, Any] = {"n_ctx": 256, "n_batch": 32, "n_threads": 1, option: value}
                    model = LongLlama(MODEL, **options)
                    model(PROMPT, max_tokens=2)
                    print("-> taken", flush=True)
                except Exception as error:
                    print(f"-> {type(error).__name__}: {str(error)[:150]}", flush=True)
                    os._exit(1)
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            errors += code == 1
            if code not in (0, 1):
                print(f"-> SIGNAL {-code}", flush=True)
                return {
                    "method": "constructor",
                    "calls": done,
                    "errors": errors,
                    "wrong": [f"{option} = {name}: {code}"],
                }
    return {"method": "constructor", "calls": done, "errors": errors, "wrong": []}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    chosen, part = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    print(json.dumps(construct(part) if chosen == "constructor" else run(chosen, part)))
