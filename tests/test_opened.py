"""Opening a model: arguments, files that are not models, what is chosen, and how often a file and a prompt are
read."""

from __future__ import annotations

import gc
import pickle
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pyllama_long import AttentionPlan, LongLlama, RopePolicy, _native, cli, gguf_reader, keywords, opened
from pyllama_long._native import llama_cpp
from pyllama_long.context_options import KV_TYPES
from pyllama_long.engine import Engine, EngineConfig
from pyllama_long.errors import ModelError
from pyllama_long.model import Model
from pyllama_long.sequence import TokenSequence

PROMPT = "The grass is green. " * 200  # longer than the embedded model's trained length
ONCE = {"read": 1, "tokenized": 1, "admitted": 1}


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often a header is read, the prompt is tokenized and a text is admitted."""
    found: Counter[str] = Counter()

    def counted(owner: Any, name: str, what: str, counts: Callable[..., bool]) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            found[what] += counts(*args)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    counted(gguf_reader.Reader, "metadata", "read", lambda *_: True)
    counted(Model, "tokenize", "tokenized", lambda _model, text, *_: text == PROMPT.encode())
    counted(TokenSequence, "admit", "admitted", lambda *_: True)
    yield found


@pytest.mark.parametrize("more", [[], ["--ctx", "2048"]], ids=" ".join)
def test_complete_reads_a_file_once_and_a_prompt_once(counts: Counter[str], more: list[str]) -> None:
    assert cli.run(["complete", PROMPT, "--max-tokens", "2", "--temp", "0", *more]) == 0
    assert counts == ONCE


@pytest.mark.parametrize("logprobs", [None, 1])
def test_a_long_llama_reads_its_file_once_and_a_prompt_once(
    counts: Counter[str], demo_model: str, logprobs: int | None
) -> None:
    with closing(LongLlama(demo_model, n_ctx=2048)) as llm:
        llm.create_completion(PROMPT, max_tokens=2, echo=logprobs is not None, logprobs=logprobs)
    assert counts == ONCE


def test_an_engine_reads_its_file_once(counts: Counter[str], demo_model: str) -> None:
    with Engine(EngineConfig(demo_model, n_ctx=2048, n_threads=1)) as engine:
        engine.tokenize(PROMPT.encode())
    assert counts == {"read": 1, "tokenized": 1}


def test_rope_arguments_that_change_nothing() -> None:
    o = keywords.options({"rope_freq_base": 10000.0, "rope_freq_scale": 1.0})
    assert not opened.scaled_by_caller(o, 10000.0)
    o = keywords.options({"rope_freq_base": 10000.0})
    with pytest.warns(
        UserWarning, match="rope_freq_base=10000 is ignored: the model was trained with 500000"
    ):
        assert not opened.scaled_by_caller(o, 500000.0)
    assert o.rope_freq_base == 0.0


@pytest.mark.parametrize("given", [{"rope_freq_scale": 0.5}, {"rope_freq_base": 2e4}, {"yarn_orig_ctx": 512}])
def test_rope_arguments_that_scale(demo_model: str, given: dict[str, Any]) -> None:
    assert opened.scaled_by_caller(keywords.options(given), 10000.0)
    model = LongLlama(demo_model, n_ctx=1024, **given)
    assert str(model.rope) == "native"
    assert "llama_cpp's own arguments scale" in model.explain()
    model.close()


@pytest.mark.parametrize("make", [LongLlama, lambda path, **given: Engine(EngineConfig(path, **given))])
def test_what_upstreams_attention_cannot_run_is_refused(demo_model: str, make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="its own precision, not f32"):
        make(demo_model, n_ctx=512, attention="upstream", precision="f32")
    with pytest.raises(ValueError, match="cannot run the RoPE policy yarn"):
        make(demo_model, n_ctx=512, attention="upstream", rope="yarn(4)")


PROMPT = "Captain Ahab stood upon the deck, and the crew"


def test_attributes(llm: LongLlama, upstream: Any) -> None:
    assert isinstance(llm, llama_cpp.Llama)
    assert (llm.n_train, llm.n_ctx(), llm.context_params.n_ctx, llm.n_batch) == (512, 512, 512, 64)
    assert llm.plan == AttentionPlan.parse("exact")
    assert str(llm.rope) == "native"
    for name in ("n_vocab", "n_embd", "token_eos", "token_bos", "token_nl", "pooling_type"):
        assert getattr(llm, name)() == getattr(upstream, name)()
    assert llm.metadata == upstream.metadata
    # not a guessed template, which does not know parts of messages
    assert llm.chat_format == "chat_template.default"


def test_n_ctx_zero_is_the_trained_length(demo_model: str) -> None:
    model = LongLlama(demo_model)
    assert model.n_ctx() == model.n_train == 512
    model.close()
    with pytest.raises(RuntimeError, match="closed"):
        model.eval([300])


def test_beyond_the_trained_length(demo_model: str) -> None:
    model = LongLlama(demo_model, n_ctx=2048, attention="skim")
    assert str(model.rope) == "rerope(128)+logn"
    assert str(model.plan) == "prefill: sinks(4)+window(508) | tail: exact"
    text = model.explain()
    for part in (
        "trained on 512 tokens",
        "2048 tokens, f16 cache",
        str(model.plan),
        "rerope(128)",
        "none",
    ):
        assert part in text
    model.eval([300 + i % 2700 for i in range(1500)])
    stats = model.attention_stats()
    assert 0 < stats["share_of_keys"] < 1
    assert stats["keys_read"] < stats["keys_visible"]
    assert stats["tokens"] == 1500
    model.close()


def test_plans_and_policies_as_objects(demo_model: str) -> None:
    plan = AttentionPlan.parse("sinks(4)+window(64)")
    model = LongLlama(
        demo_model, n_ctx=512, attention=plan, rope=RopePolicy(freq="linear", factor=2.0, n_train=512)
    )
    assert model.plan is plan
    assert "asked for" in model.explain()
    model.close()


def test_upstreams_attention(demo_model: str, llm: LongLlama) -> None:
    model = LongLlama(demo_model, n_ctx=1024, attention="upstream")
    assert "own attention: all, as asked for" in model.explain()
    assert "CPU kernels: llama.cpp's own\n" in model.explain()
    assert str(model.rope) == "native"
    expected = llm(PROMPT, max_tokens=8, temperature=0)["choices"][0]["text"]
    assert model(PROMPT, max_tokens=8, temperature=0)["choices"][0]["text"] == expected
    counts = {"keys_read": 0, "keys_visible": 0, "tokens": 0, "error": 0, "checked_rows": 0}
    assert model.attention_stats() == {"share_of_keys": 1.0, **counts}
    model.close()
    with pytest.raises(ValueError, match="attention='upstream' cannot run the RoPE policy yarn"):
        LongLlama(demo_model, attention="upstream", rope="yarn(4)")


@pytest.mark.parametrize("kind", KV_TYPES)
def test_kv_types(demo_model: str, kind: str) -> None:
    model = LongLlama(demo_model, kv_type=kind)
    assert f"{kind} cache" in model.explain()
    assert "llama.cpp's own attention: none" in model.explain()
    assert model(PROMPT, max_tokens=4, temperature=0)["usage"]["completion_tokens"] == 4
    model.close()


def test_precisions(demo_model: str) -> None:
    best = _native.isa()
    exact = {"amx": "avx512", "avx512bf16": "avx512", "neonbf16": "neon"}.get(best, best)
    shown = {
        "auto": f"{best}, {'float32' if exact == best else 'bf16'}",
        "f32": f"{exact}, float32",
    }
    for precision, kernels in shown.items():
        model = LongLlama(demo_model, precision=precision)
        assert model.precision == precision
        assert f"CPU kernels: {kernels}\n" in model.explain()
        again = pickle.loads(pickle.dumps(model))
        assert again.precision == precision
        model.close()
        again.close()
    with pytest.raises(ValueError, match="unknown precision 'f8'; known: auto, f32"):
        LongLlama(demo_model, precision="f8")
    with pytest.raises(ValueError, match="attention='upstream' has its own precision, not f32"):
        LongLlama(demo_model, attention="upstream", precision="f32")


def test_wrong_arguments(demo_model: str) -> None:
    with pytest.raises(ValueError, match="unknown kv_type 'int3'; known: f32"):
        LongLlama(demo_model, kv_type="int3")
    for number in (-1, 26, 100000):
        for name in ("type_k", "type_v"):
            given: dict[str, Any] = {name: number}
            with pytest.raises(ValueError, match=f"unknown {name} {number}; known: 0"):
                LongLlama(demo_model, **given)
    with pytest.raises(ValueError, match="kv_type='q8_0' is for K and V"):
        LongLlama(demo_model, n_ctx=64, kv_type="q8_0", type_v=1)
    with pytest.raises(ValueError, match="unknown type_v 'q5_k'; known: f32, f16, bf16, q8_0, q4_0, q4_1"):
        LongLlama(demo_model, n_ctx=64, type_k="q8_0", type_v="q5_k")
    with closing(LongLlama(demo_model, n_ctx=64, type_k="iq4_nl", type_v=6)) as model:
        assert "iq4_nl/q5_0 cache" in model.explain()
        assert "llama.cpp's own attention: none" in model.explain()
    with pytest.raises(ValueError, match="n_threads is 100000: give at most 512"):
        LongLlama(demo_model, n_threads=100000)
    with pytest.raises(ValueError, match="n_ctx is -5"):
        LongLlama(demo_model, n_ctx=-5)
    with pytest.raises(ValueError, match="n_ctx is 4294967296"):
        LongLlama(demo_model, n_ctx=2**32)
    with pytest.raises(ValueError, match="n_batch is 0"):
        LongLlama(demo_model, n_batch=0)
    with pytest.raises(ValueError, match="unknown part"):
        LongLlama(demo_model, attention="windw(3)")
    with pytest.raises(ValueError, match="unknown policy"):
        LongLlama(demo_model, rope="yarm(4)")
    with pytest.raises(ValueError, match="not both"):
        LongLlama(demo_model, rope="yarn(4)", rope_freq_scale=0.25)


def test_langchains_arguments(demo_model: str) -> None:
    # What LangChain's LlamaCpp passes for every model.
    legacy: dict[str, Any] = {"n_parts": -1, "f16_kv": True, "lora_base": None, "lora_path": None, "seed": -1}
    known: dict[str, Any] = {
        "rope_freq_scale": 1.0,
        "rope_freq_base": 10000.0,
        "last_n_tokens_size": 64,
        "use_mlock": False,
    }
    model = LongLlama(model_path=demo_model, n_ctx=512, logits_all=False, **legacy, **known)
    with pytest.warns(UserWarning, match="LongLlama ignores unknown options: f16_kv, nonsense"):
        LongLlama(model_path=demo_model, n_ctx=512, f16_kv=False, n_parts=-1, nonsense=1).close()
    assert str(model.rope) == "native"
    assert model(prompt=PROMPT, stop=[], max_tokens=2)["object"] == "text_completion"
    model.close()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "Model path does not exist"),
        (b"", "is empty"),
        (b"GGUF", "is cut off"),
        (b"PK\x03\x04 and so on", "is not a GGUF file"),
        (b"GGUF\x03\x00\x00\x00", "cannot load .*: .+"),
        (b"GGUF\x63\x00\x00\x00" + bytes(64), "cannot load .*version"),
    ],
)
def test_files_that_are_no_models(
    tmp_path: Path, content: bytes | None, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=reason) as error:
        LongLlama(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_truncated_and_foreign_files(
    demo_model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = Path(demo_model).read_bytes()
    for share in (0.01, 0.5, 0.999):
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ModelError, match=r"cut\.gguf: .*download it again"):
            LongLlama(str(path))
    with pytest.raises(ModelError, match="is not a file"):
        LongLlama(str(tmp_path))
    assert capfd.readouterr() == ("", "")


def test_what_fails_half_way_is_freed(demo_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", noise.append)
    with pytest.raises(ModelError, match="cannot load the LoRA /none"):
        LongLlama(demo_model, n_ctx=64, lora_path="/none")
    with pytest.raises(TypeError, match="model_path"):
        LongLlama()  # type: ignore[call-arg]
    gc.collect()
    assert not noise


def test_a_vocabulary_with_a_token_twice(demo_model: str, tmp_path: Path) -> None:
    # llama.cpp ends the process there.
    data = bytearray(Path(demo_model).with_name("longnet.gguf").read_bytes())
    data[1187] = 63
    path = tmp_path / "twice.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"twice\.gguf is damaged: the token '\?' is there twice"):
        LongLlama(str(path))


def test_a_cache_that_does_not_fit_the_machine(demo_model: str) -> None:
    with pytest.raises(ModelError, match=r"KV cache of 1000000000 tokens takes .* GiB.*lower n_ctx"):
        LongLlama(demo_model, n_ctx=1_000_000_000)


def test_what_cannot_run_is_refused_with_the_reason(demo_model: str) -> None:
    with pytest.raises(
        ModelError, match=r"cannot make a context for .*: this RoPE policy needs every .*flash"
    ):
        LongLlama(demo_model, n_ctx=1024, flash_attn=False, rope="rerope(256)")
    model = LongLlama(demo_model, n_ctx=1024, flash_attn=False)
    assert str(model.rope) == "dynamic-yarn" and "is left out (this RoPE policy needs" in model.rope_reason
    model.close()
    with pytest.warns(UserWarning, match="layers that do not run the plan: 0-5 .*flash"):
        model = LongLlama(demo_model, attention="streaming", flash_attn=False)
    assert "own attention: 0-5 (flash attention is off" in model.explain()
    model.close()


def test_silent_by_default(demo_model: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = LongLlama(demo_model)
    model(PROMPT, max_tokens=2)
    model.close()
    assert capfd.readouterr() == ("", "")
    model = LongLlama(demo_model, verbose=True)
    model.close()
    assert "llama_model_loader" in capfd.readouterr().err


def test_ctrl_c_ends_loading_and_is_raised(demo_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a callback of llama.cpp, where it would be lost."""
    real, loaded = llama_cpp.llama_model_load_from_file, []

    def load(*args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        loaded.append(real(*args))
        return loaded[-1]

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", load)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            LongLlama(demo_model, n_ctx=256)
    finally:
        signal.signal(signal.SIGINT, before)
    assert loaded == [None]
