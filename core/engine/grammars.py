"""Compiling grammars off the loop: a few threads, a cache, limits on size and time.

A thread that is stuck in a native library cannot be ended. So a compile that does not come back in time costs its
requests an error and the pool one thread, until it does come back; when all are lost, new grammars are refused at once.
All methods are called from the engine's thread; only `_work` runs on others.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from core.engine.grammar_cache import Grammar, GrammarCache, Key
from core.engine.grammar_source import compiled
from core.engine.vocabulary import Vocabularies
from core.interfaces.errors import CoreError, EngineError, Overloaded, RequestError
from core.interfaces.grammar import GrammarBackend, Vocabulary
from core.interfaces.params import GrammarParams

PREPARE_TIMEOUT_S = 120.0  # of reading the vocabulary and making the backend, once
CLOSE_TIMEOUT_S = 1.0
logger = logging.getLogger("core.engine")


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """timeout_s: of one compile, and of waiting for a thread to begin it. max_bytes: of a source. max_waiting:
    requests that may wait at once."""

    timeout_s: float = 10.0
    cache_bytes: int = 64 << 20
    max_bytes: int = 256 << 10
    threads: int = 2
    max_waiting: int = 1024


class Backends:
    """A grammar backend for texts and one for structures, each made when it is first needed.

    vocabularies: reads them; slow. make: the backend of a vocabulary; slow.
    """

    def __init__(self, vocabularies: Callable[[], Vocabularies], make: Callable[[Vocabulary], GrammarBackend]) -> None:
        self._read = vocabularies
        self._make = make
        self._lock = threading.Lock()
        self._vocabularies: Vocabularies | None = None
        self._made: list[tuple[Vocabulary, GrammarBackend]] = []

    def of(self, kind: str) -> GrammarBackend:
        """The backend of a kind of grammar. Called from several threads; one makes it, the others wait."""
        with self._lock:
            if self._vocabularies is None:
                self._vocabularies = self._read()
            wanted = self._vocabularies.tagged if kind == "structural_tag" else self._vocabularies.plain
            for vocabulary, backend in self._made:
                if vocabulary is wanted:
                    return backend
            self._made.append((wanted, self._make(wanted)))
            return self._made[-1][1]

    @property
    def pieces(self) -> Sequence[bytes]:
        """Bytes of every token. There is none before the first backend was made."""
        return self._vocabularies.pieces if self._vocabularies is not None else ()


@dataclass(slots=True, eq=False)
class _Job:
    """One compile. waiting: requests. taken_s: a thread has it. started_s: the backend is there and compiles. dropped:
    nobody waits any more."""

    params: GrammarParams
    queued_s: float
    waiting: list[int] = field(default_factory=list)
    taken_s: float | None = None
    started_s: float | None = None
    dropped: bool = False
    result: Grammar | CoreError | None = None
    seconds: float = 0.0

    @property
    def key(self) -> Key:
        return self.params.kind, self.params.text


class GrammarPool:
    """kinds: of grammar that the backend takes. name: of the backend, for errors."""

    def __init__(
        self,
        backends: Backends,
        kinds: frozenset[str],
        limits: GrammarLimits | None = None,
        *,
        name: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backends = backends
        self._kinds = kinds
        self._limits = limits or GrammarLimits()
        self._name = name
        self._clock = clock
        self._cache = GrammarCache(self._limits.cache_bytes)
        self._jobs: dict[Key, _Job] = {}
        self._asked: dict[int, _Job] = {}  # by request
        self._lost: set[_Job] = set()
        self._todo: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._news = threading.Event()
        self._threads: list[threading.Thread] = []
        self._counts = dict.fromkeys(("compiles", "cache_hits", "timeouts"), 0)
        self._compile_s = 0.0

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their grammar."""
        return len(self._asked)

    def ask(self, request_id: int, params: GrammarParams) -> Grammar | None:
        """The grammar, if it is there; None if it comes with `take`. Raises RequestError, or Overloaded."""
        found = self._cache.get((params.kind, params.text))
        if found is not None:
            self._counts["cache_hits"] += 1
            return found
        job = self._jobs.get((params.kind, params.text))
        if job is None:
            self._check(params)
        if len(self._asked) >= self._limits.max_waiting:
            raise Overloaded(f"{len(self._asked)} requests wait for their grammars, which is the limit")
        if job is None:
            if len(self._lost) >= self._limits.threads:
                raise _busy("every thread that compiles grammars is stuck in one that takes too long")
            job = self._jobs[params.kind, params.text] = _Job(params, self._clock())
            self._hire()
            self._todo.put(job)
        job.waiting.append(request_id)
        self._asked[request_id] = job
        return None

    def drop(self, request_id: int) -> bool:
        """The request has gone; False if it does not wait here."""
        job = self._asked.pop(request_id, None)
        if job is None:
            return False
        job.waiting.remove(request_id)
        if not job.waiting and job.taken_s is None:
            job.dropped = True
            del self._jobs[job.key]
        return True

    def take(self) -> list[tuple[int, Grammar | CoreError]]:
        """What has become of requests since the last call: (request, its grammar or why there is none)."""
        if not self._jobs and not self._lost:
            return []
        self._news.clear()
        told: list[tuple[int, Grammar | CoreError]] = []
        while not self._done.empty():
            told += self._finish(self._done.get_nowait())
        now_s, limit_s = self._clock(), self._limits.timeout_s
        for job in list(self._jobs.values()):
            if job.started_s is not None:
                if now_s - job.started_s > limit_s:
                    self._counts["timeouts"] += 1
                    told += self._lose(job, _too_slow(job.params, limit_s))
            elif job.taken_s is not None:
                if now_s - job.taken_s > PREPARE_TIMEOUT_S:
                    told += self._lose(job, EngineError(f"grammar backend {self._name!r} does not get ready"))
            elif now_s - job.queued_s > limit_s:
                told += self._refuse(job, _busy(f"no thread could begin this grammar in {limit_s:g} s"))
        if len(self._lost) >= self._limits.threads:
            for job in [job for job in self._jobs.values() if job.taken_s is None]:
                told += self._refuse(job, _busy("every thread that compiles grammars is stuck"))
        return told

    def wait(self, timeout_s: float) -> None:
        """Sleep until there is something to `take`, or for `timeout_s`."""
        if self._done.empty():
            self._news.wait(timeout_s)

    def stats(self) -> dict[str, float]:
        """Metric values."""
        return {
            "grammar_compile_seconds_total": self._compile_s,
            "grammar_compiles_total": self._counts["compiles"],
            "grammar_cache_hits_total": self._counts["cache_hits"],
            "grammar_timeouts_total": self._counts["timeouts"],
            "grammar_waiting": len(self._asked),
            "grammar_cache_bytes": self._cache.num_bytes,
            "grammar_threads_lost": len(self._lost),
        }

    def close(self) -> None:
        """End the threads; one that is stuck is left behind."""
        for job in self._jobs.values():
            job.dropped = True
        for _ in self._threads:
            self._todo.put(None)
        until_s = time.monotonic() + CLOSE_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))

    # What happens to a job

    def _check(self, params: GrammarParams) -> None:
        name = params.param or params.kind
        if params.kind not in self._kinds:
            raise RequestError(
                f"{name}: grammar backend {self._name!r} takes no grammar of kind {params.kind!r}",
                param=params.param or None,
                hint=f"it takes {', '.join(sorted(self._kinds))}; another backend may take more",
            )
        size = len(params.text.encode("utf-8", "surrogatepass"))
        if size > self._limits.max_bytes:
            raise RequestError(
                f"{name} has {size} bytes; at most {self._limits.max_bytes} are allowed",
                param=params.param or None,
                hint="shorten it; the operator's setting is max_grammar_bytes",
            )

    def _hire(self) -> None:
        """One thread more, as long as there are grammars for it."""
        if len(self._threads) < min(self._limits.threads, len(self._jobs) + len(self._lost)):
            thread = threading.Thread(target=self._work, name=f"core-grammar-{len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _finish(self, job: _Job) -> list[tuple[int, Grammar | CoreError]]:
        """A thread is done with a job, perhaps long after it was given up."""
        self._lost.discard(job)
        result = job.result
        if result is None:  # nobody wanted it any more
            return []
        self._counts["compiles"] += 1
        self._compile_s += job.seconds
        if isinstance(result, Grammar):
            self._cache.put(job.key, result)
        if self._jobs.get(job.key) is not job:
            return []
        del self._jobs[job.key]
        return self._tell(job, result)

    def _lose(self, job: _Job, error: CoreError) -> list[tuple[int, Grammar | CoreError]]:
        logger.warning("a grammar of kind %s and %d characters is given up", job.params.kind, len(job.params.text))
        self._lost.add(job)
        return self._refuse(job, error)

    def _refuse(self, job: _Job, error: CoreError) -> list[tuple[int, Grammar | CoreError]]:
        job.dropped = True
        del self._jobs[job.key]
        return self._tell(job, error)

    def _tell(self, job: _Job, result: Grammar | CoreError) -> list[tuple[int, Grammar | CoreError]]:
        waiting, job.waiting = job.waiting, []
        for request_id in waiting:
            del self._asked[request_id]
        return [(request_id, result) for request_id in waiting]

    # On the pool's threads

    def _work(self) -> None:
        while (job := self._todo.get()) is not None:
            if job.dropped:
                continue
            job.taken_s = self._clock()
            job.result = self._compiled(job)
            self._done.put(job)
            self._news.set()

    def _compiled(self, job: _Job) -> Grammar | CoreError:
        try:
            backend = self.backends.of(job.params.kind)
        except CoreError as error:
            return error
        except BaseException as error:  # of a native library, it may be no Exception
            logger.exception("grammar backend %s cannot be made", self._name)
            return EngineError(f"grammar backend {self._name!r} cannot be made: {type(error).__name__}: {error}")
        job.started_s, start_s = self._clock(), time.perf_counter()
        try:
            grammar = compiled(backend, job.params)
            return Grammar(grammar, backend, grammar.num_bytes)
        except CoreError as error:
            return error
        except BaseException as error:
            return EngineError(f"grammar backend {self._name!r}: {type(error).__name__}: {error}")
        finally:
            job.seconds = time.perf_counter() - start_s


def _busy(why: str) -> Overloaded:
    return Overloaded(f"grammars cannot be compiled now: {why}", retry_after_s=5)


def _too_slow(params: GrammarParams, limit_s: float) -> RequestError:
    return RequestError(
        f"{params.param or params.kind} takes longer than {limit_s:g} s to compile",
        param=params.param or None,
        code="grammar_timeout",
        hint="use a simpler grammar; the operator's setting is grammar_timeout_s",
    )
