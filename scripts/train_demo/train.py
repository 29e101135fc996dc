"""The training loop: Muon for matrices, AdamW for the rest, bfloat16 products, checkpoints.

A budget in minutes or steps determines the schedule: warm-up, constant, linear decay over the last 40%. Phase 0 ends
when the model has learned to look back (answer loss below 0.6), or after 35% of the budget; then the tasks grow to
the full context.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from train_demo import model, needles
from train_demo.corpus import MARKS, Corpus
from train_demo.errors import TrainError, need
from train_demo.grow import grow_rows
from train_demo.tasks import Tasks
from train_demo.writer import ANSWER, Writer

WARM_UP = 60  # steps
DECAY = 0.4  # share of the budget
LOOKS_BACK = 0.6  # loss of answer tokens that ends phase 0
MAX_COPIES = 800  # how much longer a text a sequence may stand for


@dataclass(frozen=True)
class Settings:
    """How to train; steps overrules minutes when it is set."""

    minutes: float = 24.0
    steps: int = 0
    batch: int = 12
    lr_matrix: float = 4e-3
    lr_other: float = 3e-3
    threads: int = 0  # torch's own choice
    device: str = "cpu"
    compile: bool = True
    seed: int = 0
    far: float = 0.6  # share of the batches that imitate longer texts (model.Far); 0 for dilated attention
    prose: float = 0.3  # share of the sequences that are prose without a task
    save_every: float = 120.0  # seconds


@dataclass
class State:
    """The progress of a run; saved in checkpoints."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    phase: int = 0
    turned: float = 0.0  # the share of the budget at which phase 1 began
    losses: list[tuple[float, float]] = field(default_factory=list)  # loss, answer loss of the last steps


class Trainer:
    """One run in a folder, which holds tokenizer.json, corpus.npz, checkpoint.pt and log.jsonl."""

    def __init__(
        self, folder: Path, corpus: Corpus, c: model.Config, s: Settings, say: Callable[[str], None] = print
    ) -> None:
        torch = self.torch = need("torch", "2.9")
        if not hasattr(torch.optim, "Muon"):
            raise TrainError(f'torch {torch.__version__} has no Muon: pip install "torch>=2.9"')
        if c.segments and s.far:
            raise TrainError("dilated attention does not train for longer texts: give --far 0")
        if s.threads:
            torch.set_num_threads(s.threads)
        self.folder, self.c, self.s, self.say, self.state = folder, c, s, say, State()
        self.tasks = Tasks(corpus, corpus.train, seed=s.seed + 2, plain=s.prose)
        self.corpus = corpus
        self.params = {
            name: tensor.detach().to(s.device).requires_grad_()
            for name, tensor in model.initial(c, s.seed).items()
        }
        self.tables = model.make_tables(c, c.n_ctx + 1, s.device)
        matrices = [p for name, p in self.params.items() if p.dim() == 2 and name != "token_embd"]
        self.others = [p for name, p in self.params.items() if p.dim() == 1 or name == "token_embd"]
        self.optimizers = {
            "muon": torch.optim.Muon(
                matrices, lr=s.lr_matrix, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
            ),
            "adamw": torch.optim.AdamW(self.others, lr=s.lr_other, betas=(0.9, 0.95), weight_decay=0.0),
        }
        self.loss = torch.compile(self._loss) if s.compile else self._loss
        self.stop = False

    # ---- the loop ------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Trains to the end of the budget, or until Ctrl-C (a second one stops at once). Returns whether the
        end was reached; a checkpoint is written either way."""
        state, saved, shown = self.state, time.monotonic(), 0.0
        before, began = state.seconds, 0.0
        former = signal.signal(signal.SIGINT, self._interrupt)
        try:
            while not self.stop and self.done() < 1:
                self.step()
                now = time.monotonic()
                began = began or now  # the first step compiles, which is not training time
                state.seconds = before + now - began
                if now - shown > 5 or self.done() >= 1:
                    shown = now
                    self.say(self.progress())
                if now - saved > self.s.save_every:
                    saved = now
                    self.save()
        finally:
            signal.signal(signal.SIGINT, former)
        self.save()
        return not self.stop

    def done(self) -> float:
        """The share of the budget that is used."""
        if self.s.steps:
            return self.state.step / self.s.steps
        return self.state.seconds / (self.s.minutes * 60)

    def step(self) -> float:
        """Trains on one batch; returns its loss."""
        torch, state, s = self.torch, self.state, self.s
        done = self.done()
        rate = min(1.0, (state.step + 1) / WARM_UP) * min(1.0, max(0.02, (1 - done) / DECAY))
        for name, lr in (("muon", s.lr_matrix), ("adamw", s.lr_other)):
            for group in self.optimizers[name].param_groups:
                group["lr"] = lr * rate
        answers = [loss for _, loss in state.losses[-30:] if not math.isnan(loss)]
        learned = len(state.losses) > 60 and answers and float(np.mean(answers)) < LOOKS_BACK
        if state.phase == 0 and (learned or done > 0.35):
            state.phase, state.turned = 1, done
        self.tasks.phase = state.phase
        share = min(1.0, 0.4 + 6 * (done - state.turned)) if state.phase else 0.25
        drawn = self.tasks.batch(s.batch, self.c.n_ctx + 1, share)
        x, w, kept = (torch.from_numpy(array).to(s.device) for array in drawn)
        far = self._far(kept[:, :-1]) if self.tasks.random.random() < s.far and state.phase else None
        try:
            with torch.autocast(s.device, dtype=torch.bfloat16):
                loss, each = self.loss(self.params, x, w, far)
        except torch._dynamo.exc.TorchDynamoException as error:
            first = str(error).splitlines()[0]
            raise TrainError(f"torch.compile failed, try --no-compile ({first})") from error
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        asked = each.detach()[w[:, 1:].reshape(-1) == ANSWER]
        answer = asked.mean().item() if asked.numel() else math.nan
        if not math.isfinite(loss.item()):
            raise TrainError(f"the loss is not finite at step {state.step}: lower --lr-matrix and --lr-other")
        state.losses = [*state.losses[-99:], (loss.item(), answer)]
        state.step += 1
        state.tokens += s.batch * self.c.n_ctx
        return float(loss.item())

    def _far(self, kept: Any) -> model.Far:
        """Windows and lengths for sequences that imitate longer ones."""
        torch, draw, n = self.torch, self.tasks.random, len(kept)
        windows = [draw.randint(self.c.n_ctx // 8, self.c.n_ctx * 5 // 8) for _ in range(n)]
        copies = [math.exp(math.log(MAX_COPIES) * math.sqrt(draw.random())) for _ in range(n)]
        window = torch.tensor(windows, device=self.s.device)
        return model.Far(window, torch.tensor(copies, device=self.s.device), kept)

    def _loss(self, params: model.Params, x: Any, w: Any, far: model.Far | None) -> tuple[Any, Any]:
        """Weighted mean of the next token's loss, and each token's."""
        logits = model.forward(params, x[:, :-1], self.tables, self.c, far)
        flat = logits.reshape(-1, self.c.n_vocab).float()
        each = self.torch.nn.functional.cross_entropy(flat, x[:, 1:].reshape(-1), reduction="none")
        weight = w[:, 1:].reshape(-1)
        return (each * weight).sum() / weight.sum(), each

    def _interrupt(self, number: int, frame: object) -> None:
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True

    def progress(self) -> str:
        """One line with progress, losses, speed and remaining time."""
        state, done = self.state, self.done()
        loss, answer = (
            np.nanmean(np.array([*state.losses[-50:], (np.nan, 9.9)]), 0) if state.losses else (0, 0)
        )
        left = max(0.0, state.seconds * (1 - done) / done) if done else 0.0
        return (
            f"{done:4.0%}  step {state.step}  {state.tokens / 1e6:.2f}M tokens  loss {loss:.3f}  "
            f"answers {answer:.3f}  {state.tokens / max(1.0, state.seconds):.0f} tok/s  "
            f"phase {state.phase}  {int(left // 60)}:{int(left % 60):02d} left"
        )

    # ---- keeping -------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes checkpoint.pt, whole or not at all."""
        path = self.folder / "checkpoint.pt"
        self.torch.save(
            {
                "config": self.c.as_dict(),
                "state": json.dumps([asdict(self.state), self.tasks.random.getstate()]),
                "params": {name: p.detach() for name, p in self.params.items()},
                "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            },
            path.with_suffix(".part"),
        )
        path.with_suffix(".part").replace(path)

    def start_from(self, tensors: Mapping[str, Any]) -> None:
        """Loads weights of the same shape, except for a smaller vocabulary, and starts with the full tasks at
        once."""
        rows = tensors.get("token_embd")
        if rows is not None and len(MARKS) < len(rows) < self.c.n_vocab:
            tensors = {**tensors, "token_embd": grow_rows(rows, self.corpus.tokenizer, len(MARKS))}
        with self.torch.no_grad():
            for name, p in self.params.items():
                if name not in tensors or tensors[name].shape != tuple(p.shape):
                    raise TrainError(f"the model to start from has no {name} of shape {tuple(p.shape)}")
                p.copy_(self.torch.from_numpy(tensors[name]))
        self.state.phase = 1

    def resume(self) -> None:
        """Continues from checkpoint.pt, with the same numbers as if the run had not stopped. Raises TrainError."""
        path = self.folder / "checkpoint.pt"
        if not path.is_file():
            raise TrainError(f"{path} is not there: nothing to resume")
        kept = self.torch.load(path, map_location=self.s.device, weights_only=True)
        if model.Config(**kept["config"]) != self.c:
            raise TrainError(f"{path} holds a model of another shape ({kept['config']})")
        state, (version, numbers, gauss) = json.loads(kept["state"])
        self.state = State(**{**state, "losses": [tuple(pair) for pair in state["losses"]]})
        self.tasks.random.setstate((version, tuple(numbers), gauss))
        with self.torch.no_grad():
            for name, p in self.params.items():
                p.copy_(kept["params"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(kept["optimizers"][name])

    def weights(self) -> dict[str, Any]:
        """The tensors as float32 arrays."""
        return {name: p.detach().float().cpu().numpy() for name, p in self.params.items()}

    # ---- measuring -----------------------------------------------------------------------------------------

    def measure(self, n: int = 48) -> dict[str, Any]:
        """Answers that are right in every token, on text and words that were never trained on, as [right, asked],
        plainly and, unless attention is dilated, as parts of longer texts; and the loss of held-out prose. Each
        over n sequences of n_ctx tokens. Also appended to log.jsonl."""
        torch, held = self.torch, Tasks(self.corpus, self.corpus.held, seed=7)
        size = self.c.n_ctx
        out: dict[str, Any] = {"step": self.state.step, "tokens": self.state.tokens}
        makes = {
            make.__name__: partial(make, held) for make in (needles.facts, needles.pairs, needles.two_hops)
        }
        with torch.no_grad(), torch.autocast(self.s.device, dtype=torch.bfloat16):
            for name, make in (makes | {"passkey": held.passkey}).items():
                drawn = [make(size - 12).cut(size) for _ in range(n)]
                for copies in (1,) if self.c.segments else (1, 100, 400):
                    right = [answer for each in drawn for answer in self._right(each, copies)]
                    out[f"{name} x{copies}"] = [sum(right), len(right)]
            losses = []
            for _ in range(n):
                x = torch.tensor([held.prose(size).ids], device=self.s.device)
                logits = model.forward(self.params, x[:, :-1], self.tables, self.c)[0].float()
                losses.append(torch.nn.functional.cross_entropy(logits, x[0, 1:]).item())
        out["held_loss"] = round(float(np.mean(losses)), 4)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(out) + "\n")
        return out

    def _right(self, each: Writer, copies: int) -> list[bool]:
        """For each answer of a sequence, whether its tokens are all the likeliest ones."""
        torch, device = self.torch, self.s.device
        x = torch.tensor([each.ids], device=device)
        far = None
        if copies > 1:
            window = torch.tensor([self.c.n_ctx // 2], device=device)
            kept = torch.tensor([each.kept], device=device)
            far = model.Far(window, torch.tensor([float(copies)], device=device), kept)
        said = model.forward(self.params, x, self.tables, self.c, far)[0].argmax(-1).tolist()
        out: list[bool] = []
        for i in range(1, len(each.ids)):
            if each.weights[i] == ANSWER:
                if each.weights[i - 1] != ANSWER:
                    out.append(True)
                out[-1] = out[-1] and said[i - 1] == each.ids[i]
        return out
