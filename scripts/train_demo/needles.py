"""Chats about the contents of a text: the tasks that the embedded model is for.

Facts have the forms of pyllama_long/evals/phrasings.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyllama_long.evals.phrasings import OPENING, PAIRS, PHRASINGS, Phrasing, sentence_case
from train_demo.corpus import forms
from train_demo.writer import ANSWER, Writer

if TYPE_CHECKING:
    from train_demo.tasks import Tasks

Fact = tuple[Phrasing, str, str]  # key, value

WITH_WORDS = tuple(phrasing for phrasing in PHRASINGS if phrasing.values == "word")
LINES = tuple(2.0 if form.name == "equals" else 1.0 for form in PAIRS)  # chances; `=` is the hardest to find
KEY = 2.0  # weight of an answer's words before its value, which repeat the key
READ = (
    OPENING,
    "Here is a text. I will ask about it afterwards.\n",
    "Read this document.\n",
)
LIST = ("Here is a list of keys and values.\n", "Remember these values.\n", "")
SYSTEM = (
    "You are a helpful assistant.",
    "Answer questions about the text.",
    "You answer in plain sentences.",
)
TALK = (
    ("Hello!", "Hello. Give me a text, and ask me what stands in it."),
    ("Hi", "Hello. Give me a text, and ask me what stands in it."),
    ("Who are you?", "I am a small model that finds facts in long texts."),
    ("What are you?", "I am a small model that finds facts in long texts."),
    ("What can you do?", "I read long texts and find the numbers and words that you ask for."),
    ("How are you?", "I am well. Give me a text to read."),
    ("Thank you!", "You are welcome."),
    ("Thanks.", "You are welcome."),
    ("Goodbye.", "Goodbye."),
    ("Can you help me?", "I can find facts in a text. Give me one, and ask."),
    (
        "How long a text can you read?",
        "I was made for texts that are far longer than those I was trained on.",
    ),
)


def facts(t: Tasks, n: int) -> Writer:
    """Facts hidden in prose of n tokens in all, then questions about some of them."""
    draw = t.random
    k = min(draw.choice((1, 1, 2, 3, 4, 6, 8, 12, 16)), max(1, (n - 60) // 28))
    asked = min(k, draw.choice((1, 1, 2, 3, 4)))
    one = form(t)
    near = draw.choice((alike, kin))(t, k) if draw.random() < 0.6 else [None] * k
    ways = [one if draw.random() < 0.6 else form(t) for _ in range(k)]
    said = [(by, key, value(t, by, word)) for by, key, word in zip(ways, keys(t, k), near, strict=True)]
    order = draw.sample(range(k), asked)
    turns = [question(t, said[j]) for j in order]
    kept = {j: j in order or draw.random() < 0.5 for j in range(k)}
    needles = [(t.encode(" " + p.needle(key, v)), kept[j]) for j, (p, key, v) in enumerate(said)]
    room = n - sum(len(ids) for ids, _ in needles) - sum(len(turn.ids) for turn in turns) - 8 * asked - 16
    out = opening(t, draw.choice(READ) if draw.random() < 0.6 else "")
    t.hide(out, needles, prose(t, room, [said[j] for j in order]))
    return converse(t, out, turns)


def pairs(t: Tasks, n: int) -> Writer:
    """Key-value lines, alone or between lines of prose, and questions about some of them."""
    draw = t.random
    form = draw.choices(PAIRS, LINES)[0]
    lined = draw.random() < 0.4
    most = (n - 60) // (14 if lined else 30)
    k = max(2, min(draw.randint(2, 40), most))
    asked = min(k, draw.choice((1, 2, 3, 4)))
    digits = draw.randint(4, 6) if draw.random() < 0.7 else 0
    said = [(form, key, t.digits(digits) if digits else draw.choice(t.part.words)) for key in keys(t, k)]
    order = draw.sample(range(k), asked)
    turns = [question(t, said[j]) for j in order]
    out = opening(t, draw.choice(LIST))
    room = n - 15 * k - sum(len(turn.ids) + 8 for turn in turns) - 16
    between = [] if lined else prose(t, room, [said[j] for j in order])
    all_kept = draw.random() < 0.5
    for j, (_, key, v) in enumerate(said):
        while between and draw.random() < len(between) / (len(between) + k - j):
            # A line end may share a token with the full stop before it.
            out.add(t.encode(t.tok.decode(between.pop(0)) + "\n"))
        out.add(t.encode(form.needle(key, v) + "\n"), 0.5, kept=all_kept or j in order)
    return converse(t, out, turns)


def two_hops(t: Tasks, n: int) -> Writer:
    """`The code for a is the same as for b.`: the answer says so, and then gives b's. Or the question is about b."""
    draw = t.random
    kind = draw.choice(("pass key", "code", "magic number"))
    a, b, *others = keys(t, draw.choice((2, 2, 3, 4)))
    v = t.digits(5)
    hop, end = f"The {kind} for {a} is the same as for {b}.", f"The {kind} for {b} is {v}."
    said = [(t.encode(" " + text), True) for text in (hop, end)]
    draw.shuffle(said)
    said += [(t.encode(f" The {kind} for {key} is {t.digits(5)}."), False) for key in others]
    hops = draw.random() < 0.6
    turn = ask(t, f"What is the {kind} for {a if hops else b}?")
    if hops:
        turn.add(t.encode(f"The {kind} for {a} is the same as for"))
        turn.add(t.encode(f" {b}."), ANSWER)
    turn.add(t.encode(f"{' ' * hops}The {kind} for {b} is "))
    turn.add(t.encode(v), ANSWER).add(t.encode("."))
    room = n - sum(len(ids) for ids, _ in said) - len(turn.ids) - 24
    out = opening(t, draw.choice(READ))
    t.hide(out, said, t.filler(max(0, room)))
    return converse(t, out, [turn])


def counting(t: Tasks, n: int) -> Writer:
    """A sentence that occurs one to five times."""
    draw = t.random
    key, other = keys(t, 2)
    times = draw.randint(1, 5)
    letter = t.encode(f" A letter came for {sentence_case(key)}.")
    said = [(letter, True)] * times
    said += [(t.encode(f" A letter came for {sentence_case(other)}."), False)] * draw.randint(0, 2)
    draw.shuffle(said)
    turn = ask(t, f"How many letters came for {sentence_case(key)}?")
    turn.add(t.encode(str(times)), ANSWER)
    turn.add(t.encode(f" {'letter' if times == 1 else 'letters'} came for {sentence_case(key)}."))
    out = opening(t, draw.choice(READ))
    t.hide(out, said, t.filler(max(0, n - sum(len(ids) for ids, _ in said) - len(turn.ids) - 24)))
    return converse(t, out, [turn])


def talk(t: Tasks, n: int) -> Writer:
    """Small talk, and sentences to repeat."""
    draw = t.random
    turns: list[Writer] = []
    while sum(len(turn.ids) for turn in turns) < min(n, 120):
        if draw.random() < 0.5:
            said, reply = draw.choice(TALK)
            turns.append(ask(t, said).add(t.encode(reply)))
        else:
            sentence = t.tok.decode(t.part.sentences[draw.randrange(len(t.part.sentences))]).strip()
            ids = t.encode(sentence)[:60]
            turns.append(ask(t, f"Repeat this: {t.tok.decode(ids)}").add(ids, 2.0))
    return converse(t, opening(t, ""), turns)


MIXTURE: tuple[tuple[Callable[[Tasks, int], Writer], float], ...] = (
    (facts, 0.4),
    (pairs, 0.3),
    (two_hops, 0.06),
    (counting, 0.03),
    (talk, 0.03),
)

# ---- pieces ------------------------------------------------------------------------------------------------


def prose(t: Tasks, n: int, said: list[Fact]) -> list[list[int]]:
    """Sentences of about n tokens, among them some with pieces of the keys and of the values that are words."""
    words = [word for _, key, v in said for word in (key, v) if not word[0].isdigit()]
    lures = t.lures(words, max(0, n) * 2 // 3)
    found = t.filler(max(0, n - sum(map(len, lures))))
    for sentence in lures:
        found.insert(t.random.randrange(len(found) + 1), sentence)
    return found


def keys(t: Tasks, k: int) -> list[str]:
    """k different keys of one kind: words, words that begin alike, two words, or made-up words."""
    draw = t.random
    sort = draw.random()
    if sort < 0.5:
        return draw.sample(t.part.words, k)
    if sort < 0.7:
        return alike(t, k)
    if sort < 0.85:
        return ["-".join(draw.sample(t.part.words, 2)) for _ in range(k)]
    made: set[str] = set()
    while len(made) < k:
        made.add(
            "".join(draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(draw.randint(2, 4)))
        )
    return draw.sample(sorted(made), k)


def alike(t: Tasks, k: int) -> list[str]:
    """k different words that begin alike: only the whole key shows which of them the question is about."""
    at, ordered = t.random.randrange(len(t.part.words)), t.part.ordered
    return t.random.sample([ordered[(at + i) % len(ordered)] for i in range(2 * k)], k)


def kin(t: Tasks, k: int) -> list[str]:
    """k words, most of which are forms of other words: only the exact word is an answer."""
    words = [t.random.choice(t.part.words) for _ in range(1 + k // 4)]
    return [t.random.choice([word, *forms(word)]) for word in t.random.choices(words, k=k)]


def form(t: Tasks) -> Phrasing:
    """Those with words as values are drawn more often, since more texts continue like them."""
    return t.random.choice(WITH_WORDS if t.random.random() < 0.45 else PHRASINGS)


def value(t: Tasks, phrasing: Phrasing, word: str | None = None) -> str:
    """word: the value, if it is to be a word."""
    draw = t.random
    if phrasing.values == "word":
        return word or str(draw.choice(t.part.words))
    return t.digits(5 if draw.random() < 0.5 else draw.randint(3, 7))


def opening(t: Tasks, text: str) -> Writer:
    """Everything before the text of the first turn."""
    out = Writer([t.bos], kept=True)
    if t.random.random() < 0.12:
        system = t.random.choice(SYSTEM)
        out.add([t.start, *t.encode(f"system\n{system}"), t.end, *t.encode("\n")], kept=True)
    return out.add([t.start, *t.encode("user\n"), *t.encode(text)], kept=True)


def ask(t: Tasks, text: str) -> Writer:
    """A question, the end of its turn and the beginning of the answer."""
    turn = Writer(t.encode(text))
    return turn.add([t.end, *t.encode("\n"), t.start, *t.encode("assistant\n")])


def question(t: Tasks, fact: Fact) -> Writer:
    """A question and its answer; the value's tokens have the most weight."""
    phrasing, key, v = fact
    turn = ask(t, phrasing.question(key, t.random.randrange(8)))
    before, after = phrasing.reply(key, "\0").split("\0")
    # A space is its own token before a digit and part of the token before a letter.
    if v[0].isdigit() or not before.endswith(" "):
        turn.add(t.encode(before), KEY)
        turn.add(t.encode(v), ANSWER)
    else:
        turn.add(t.encode(before.rstrip()), KEY)
        turn.add(t.encode(" " + v), ANSWER)
    return turn.add(t.encode(after))


def converse(t: Tasks, out: Writer, turns: list[Writer]) -> Writer:
    """The turns; each but the first has the mark of a user's turn."""
    for i, turn in enumerate(turns):
        if i:
            out.add([t.start, *t.encode("user\n")])
        out.extend(turn)
        out.add([t.end, *t.encode("\n")])
    return out
