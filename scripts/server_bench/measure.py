"""Measures a server: conversations, streams and short prompts during a long one, and many streams at a depth."""

from __future__ import annotations

import statistics
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx

from pyllama_long import filler
from server_bench.client import Answer, complete
from server_bench.contexts import tokens
from server_bench.sides import UPSTREAM

TAIL = 16  # tokens of a prompt that are new
SHORT = 26  # tokens of a short prompt


def prose(client: httpx.Client, n: int, seed: int) -> list[int]:
    """n tokens of sentences, which begin at another place for each seed; they are answered with text that arrives at
    once."""
    sentences = filler.sentences()
    start = 101 * seed % len(sentences)
    text, ids = " ".join([*sentences[start:], *sentences[:start]]), list[int]()
    while len(ids) < n:
        ids += client.post("/tokenize", json={"content": text}).json()["tokens"]
    return ids[:n]


def conversation(client: httpx.Client, n: int) -> dict[str, Any]:
    """Time to the first token of a prompt of n tokens, and of the next turn."""
    prompt = prose(client, n, 1)
    first = complete(client, prompt, 16)
    second = complete(client, [*prompt, *first.tokens, *prose(client, 30, 2)], 16)
    return {
        "prompt_tokens": n,
        "first_turn_s": first.first_s,
        "second_turn_s": second.first_s,
        "reuse": first.first_s / second.first_s,
    }


def beside_a_prompt(client: httpx.Client, n: int, streams: int) -> dict[str, Any]:
    """Measures streams alone, then the same streams while a prompt of n tokens is read: their speed over the same
    tokens, the longest pause between two tokens of one, and how long the prompt took."""
    starts, prompt = [prose(client, 32, 10 + i) for i in range(streams)], prose(client, n, 5)
    stop, answers = threading.Event(), [Answer(0.0) for _ in starts]
    with ThreadPoolExecutor(streams) as pool:
        writing = [
            pool.submit(complete, client, start, -1, -1, stop, answer)
            for start, answer in zip(starts, answers, strict=True)
        ]
        wait_for(writing, answers, 50)
        at = [len(answer.times) for answer in answers]
        begin = time.monotonic()
        long = complete(client, prompt, 1)
        end = begin + long.first_s
        stop.set()
        for one in writing:
            one.result()
    during = [[t for t in answer.times if begin <= t <= end] for answer in answers]
    counts = [max(2, len(times)) for times in during]
    gaps = [b - a for times in during for a, b in pairwise([begin, *times, end])]
    # The same streams again, which find nothing of their text in the cache.
    fresh = [[start[0] + 1, *start[1:]] for start in starts]
    with ThreadPoolExecutor(streams) as pool:
        alone = list(pool.map(lambda i: complete(client, fresh[i], at[i] + max(counts), -1), range(streams)))
    quiet = [
        counts[i] / (answer.times[min(at[i] + counts[i], len(answer.times)) - 1] - answer.times[at[i] - 1])
        for i, answer in enumerate(alone)
    ]
    speeds = [len(times) / (end - begin) for times in during]
    return {
        "prompt_tokens": n,
        "streams": streams,
        "prompt_s": long.first_s,
        "alone_tps": statistics.mean(quiet),
        "beside_tps": statistics.mean(speeds),
        "kept": sum(speeds) / sum(quiet),
        "longest_gap_s": max(gaps),
    }


def short_beside_a_prompt(client: httpx.Client, n: int, streams: int, most: int = 40) -> dict[str, Any]:
    """Time to the first token of short prompts, one after another: alone, then while a prompt of n tokens is read;
    both while streams are writing."""
    starts = [prose(client, 32, 10 + i) for i in range(streams)]
    shorts = [prose(client, SHORT, 200 + 1000 * streams + i) for i in range(2 * most)]
    prompt = prose(client, n, 5 + streams)
    stop, answers = threading.Event(), [Answer(0.0) for _ in starts]
    with ThreadPoolExecutor(streams + 1) as pool:
        writing = [
            pool.submit(complete, client, start, -1, -1, stop, answer)
            for start, answer in zip(starts, answers, strict=True)
        ]
        wait_for(writing, answers, 50)
        complete(client, prose(client, SHORT, 199), 1)  # a server's first answer takes longer
        alone = [complete(client, shorts[i], 1).first_s for i in range(most)]
        long = pool.submit(complete, client, prompt, 1)
        time.sleep(0.2)
        beside = list[float]()
        while not long.done() and len(beside) < most:
            taken = complete(client, shorts[most + len(beside)], 1).first_s
            if not long.done() or not beside:
                beside.append(taken)
        prompt_s = long.result().first_s
        stop.set()
    return {
        "prompt_tokens": n,
        "short_tokens": SHORT,
        "streams": streams,
        "prompt_s": prompt_s,
        "shorts": len(beside),
        "alone_ms": 1000 * statistics.median(alone),
        "beside_ms": 1000 * statistics.median(beside),
        "worst_ms": 1000 * max(beside),
        "times": statistics.median(beside) / statistics.median(alone),
    }


def at_depth(
    client: httpx.Client, side: str, n_vocab: int, depth: int, streams: int, n: int
) -> dict[str, Any]:
    """Measures streams that write n tokens each at a depth, from saved contexts."""
    for i in range(streams):
        if side == UPSTREAM:
            found = client.post(f"/slots/{i}", params={"action": "restore"}, json={"filename": "slot.bin"})
        else:
            found = client.post(f"/v1/sessions/stream-{i}/restore")
        found.raise_for_status()
    prompts = [
        tokens(n_vocab, depth, 0 if side == UPSTREAM else i) + tokens(n_vocab, TAIL, 50 + i)
        for i in range(streams)
    ]
    stop, answers = threading.Event(), [Answer(0.0) for _ in prompts]
    with ThreadPoolExecutor(streams) as pool:
        # The first round brings the contexts into the cells.
        list(pool.map(lambda i: complete(client, prompts[i], 2, i), range(streams)))
        writing = [
            pool.submit(complete, client, prompt, -1, i, stop, answer)
            for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        ]
        wait_for(writing, answers, 1)
        begin, at = time.monotonic(), [len(answer.tokens) for answer in answers]
        wait_for(writing, answers, max(at) + n)
        end, to = time.monotonic(), [len(answer.tokens) for answer in answers]
        stop.set()
    return {"depth": depth, "streams": streams, "tps": (sum(to) - sum(at)) / (end - begin)}


def wait_for(writing: list[Future[Answer]], answers: list[Answer], n: int) -> None:
    """Waits until every stream has n tokens. Raises RuntimeError if one ends before."""
    while min((len(answer.tokens) for answer in answers), default=n) < n:
        if ended := [one for one in writing if one.done()]:
            raise RuntimeError(f"a stream ended at once: {ended[0].exception()}")
        time.sleep(0.005)
