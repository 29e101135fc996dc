"""What the parts of the engine's thread share: requests that run, the sequences they use, and how each of them ends."""

from __future__ import annotations

import logging
import time

from pyllama_long.engine.context import Context
from pyllama_long.engine.job import Job
from pyllama_long.engine.pace import Pace
from pyllama_long.engine.pool import Pool
from pyllama_long.engine.stats import Counters
from pyllama_long.engine.store import Store
from pyllama_long.errors import NotNumbers

logger = logging.getLogger("pyllama_long.engine")


class Batching:
    """Everything here belongs to the engine's thread; others may read what a single attribute holds.

    changed: something happened that may let a waiting request begin. embedding_cells: cells that the text which is
    embedded still needs. passed: steps in a row without a token of the oldest prompt. was_stopped: a new request ended
    the last step that it could end. step_began: by time.perf_counter.
    """

    def __init__(self, context: Context, store: Store, pace: Pace) -> None:
        self._context, self._store, self.pace = context, store, pace
        self.pool = Pool(context, store)
        self.counters = Counters()
        self.running: list[Job] = []
        self._again: list[Job] = []
        self.changed = self.was_stopped = False
        self.embedding_cells = self.passed = 0
        self.step_began = 0.0

    @property
    def committed(self) -> int:
        """The number of cells that running requests and embeddings may still need."""
        jobs = sum(job.reserved - job.held.n for job in self.running if job.held is not None)
        return jobs + self.embedding_cells

    # ---- the end of a request ------------------------------------------------------------------------------

    def finish(self, job: Job, reason: str) -> None:
        """Ends a running request; its sequence stays in the cells, idle."""
        assert job.held is not None
        self.running.remove(job)
        self.pool.release(job.held)
        self.counters.mix("request_s", time.monotonic() - job.started_at)
        self.close(job, reason)
        self.changed = True

    def fail(self, job: Job, error: BaseException) -> None:
        """Ends a running request with an error; its cells are freed."""
        assert job.held is not None
        self.running.remove(job)
        if isinstance(error, NotNumbers):
            for checkpoint in job.held.checkpoints:
                self._store.drop(checkpoint)
        self.pool.drop(job.held)
        self.counters.failed += 1
        job.close()
        job.handle.fail(error)
        self.changed = True

    def close(self, job: Job, reason: str) -> None:
        """Ends a request that runs no more, or never did."""
        self.counters.completion_tokens += len(job.text.tokens)
        if reason == "cancelled":
            self.counters.cancelled += 1
        else:
            self.counters.finished += 1
        job.finish(reason)
        job.close()

    def read_again(self, job: Job) -> None:
        """Lets a running request that has not written yet begin again, without reused keys."""
        assert job.held is not None
        logger.warning(
            "cached keys gave logits that are not numbers: they are dropped, the prompt is read again"
        )
        self.running.remove(job)
        self.pool.drop(job.held)
        job.start_afresh()
        self._again.append(job)

    def take_again(self) -> list[Job]:
        """The requests that are to begin again, once."""
        again, self._again = self._again, []
        return again

    def start_over(self) -> None:
        """Forgets the requests that run, and empties the cells."""
        self.running.clear()
        self.changed = True
        self._context.clear()
        self.pool = Pool(self._context, self._store)
