"""A question about a long text in the words of a model's chat template, as tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllama_long.arrays import as_ids, common_prefix
from pyllama_long.evals import EvalError
from pyllama_long.evals.question import Question
from pyllama_long.template import Ask, ChatTemplate

if TYPE_CHECKING:
    from pyllama_long.llama import LongLlama

__all__ = ["ANSWER_TOKENS", "Prompt"]

ANSWER_TOKENS = 40  # at most, of an answer in the model's own words
_MORE_TOKENS = 16  # that an answer may take besides its values when its beginning is given
_TEMPLATE = "tokenizer.chat_template"
_PLACE = "<<text>>"  # stands for the user's message in a rendered template


class Prompt:
    """One user turn: head (tokens before the text), the text, and the question with the end of the turn.

    A model without a chat template gets a text that ends in `Question: ...` and `Answer:`, to be continued by one
    line.
    """

    def __init__(self, llm: LongLlama) -> None:
        self.llm = llm
        self._known: dict[str, list[int]] = {}
        # Tokenizers of the SentencePiece kind put a space before each text.
        self._adds_space = self.text(llm.tokenize(b"a", add_bos=False)).startswith(" ")
        template = llm.metadata.get(_TEMPLATE, "")
        before, self._before_question, self._after = "", "Question: ", "\nAnswer:"
        if template:
            before, self._after = self._render(template)
            self._before_question = ""
        self.stop = [] if template else ["\n"]
        bos = [llm.token_bos()] if llm._model.add_bos_token() and llm.token_bos() != -1 else []
        head = llm.tokenize(before.encode(), add_bos=False, special=True) if before else []
        self.head = head if head[:1] == bos else [*bos, *head]

    def encode(self, text: str) -> list[int]:
        """Tokens of a piece of the text; names of control tokens in it stay plain text."""
        found = self._known.get(text)
        if found is None:
            plain = text.removeprefix(" ") if self._adds_space else text
            found = self._known[text] = self.llm.tokenize(plain.encode(), add_bos=False, special=False)
        return found

    def tail(self, question: str, answer: str = "") -> list[int]:
        """Tokens of the question, the end of its turn and the beginning of the answer."""
        space = " " if answer and not self._after[-1:].isspace() else ""
        text = self._before_question + question + self._after + space + answer
        return self.llm.tokenize(text.encode(), add_bos=False, special=True)

    def asked(self, question: Question) -> list[int]:
        """The tail with the words that the answer is given to begin with."""
        return self.tail(question.text, question.lead.rstrip() if question.given else "")

    def answered(self, question: Question) -> tuple[list[int], int]:
        """The tail with the right answer, and the index of the first token of its values."""
        whole = self.tail(question.text, question.lead + question.said)
        before = self.tail(question.text, question.lead.rstrip())
        return whole, common_prefix(as_ids(before), as_ids(whole))

    def room(self, question: Question) -> int:
        """How many tokens the answer may have."""
        if not question.given:
            return ANSWER_TOKENS
        whole, first = self.answered(question)
        return len(whole) - first + _MORE_TOKENS

    def cost(self, question: Question) -> int:
        """How many tokens the question and its answer take after a text."""
        return len(self.asked(question)) + self.room(question)

    def text(self, tokens: list[int]) -> str:
        return self.llm.detokenize(tokens, special=True).decode(errors="ignore")

    def _render(self, template: str) -> tuple[str, str]:
        """What the template writes before and after the user's message."""
        model = self.llm._model
        eos, bos = (
            model.token_get_text(token) if token != -1 else ""
            for token in (self.llm.token_eos(), self.llm.token_bos())
        )
        try:
            found = ChatTemplate(template, bos, eos, ()).render(
                [{"role": "user", "content": _PLACE}], Ask(values={"enable_thinking": False})
            )
        except ValueError as error:
            raise EvalError(f"the model's chat template cannot be used: {error}") from None
        before, place, after = found.text.partition(_PLACE)
        if not place:
            raise EvalError("the model's chat template does not show the user's message")
        return before, after
