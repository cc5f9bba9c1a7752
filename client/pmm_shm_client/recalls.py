"""What a cache finds by meaning and by words: vectors of texts, searches, and the context of an answer.

Imported with the first read, and so it imports what it needs when it is first asked for something.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable
from functools import partial

from pmm_shm import flags, limits
from pmm_shm.flags import Flag
from pmm_shm.late import late_imports
from pmm_shm.typed import TYPE_CHECKING, Any, Literal, overload
from pmm_shm_client.reads import Consistency, Memos, Reads

if TYPE_CHECKING:
    from pmm_shm.ledger.eventlog import EventLog
    from pmm_shm.ledger.source.replica_appender import ReplicaAppender
    from pmm_shm.vectors.embedder import Embedder, Matrix, Vector
    from pmm_shm.vectors.text_table_reader import TextTableReader
    from pmm_shm_client.context import Context, ContextRequest
    from pmm_shm_client.embeddings import Embeddings
    from pmm_shm_client.event_filter import Moment
    from pmm_shm_client.finding import Finder, SearchMode, WordMode
    from pmm_shm_client.frame import Frame
    from pmm_shm_client.hits import Hit, Hits, Match, MatchedEvent, Recollection
    from pmm_shm_client.reader import Reader
    from pmm_shm_client.searching import Query, Searching
    from pmm_shm_client.stats import DaemonEmbeddingStats, EmbeddingStats


class Recalls(Reads):
    """The methods of `Cache` that embed and search.

    Parameters:
        embedder: the model of texts where none is named; None for the one in `PMM_EMBEDDER`.
    """

    # Attributes of the instance once they are needed.
    _texts: TextTableReader | None = None
    _embeddings: Embeddings | None = None
    _searching: Searching | None = None
    _finding: Finder | None = None

    def __init__(
        self,
        reader: Reader,
        memos: Memos,
        consistency: Consistency,
        timeout_s: float,
        heeds_flags: bool,
        embedder: Embedder | str | None,
    ) -> None:
        super().__init__(reader, memos, consistency, timeout_s, heeds_flags)
        self._embedder = embedder
        self._embeds_shared = not heeds_flags or flags.embedding_cache() is Flag.ON

    @property
    @abstractmethod
    def _log(self) -> EventLog:
        """The events themselves."""

    @abstractmethod
    def _source(self) -> ReplicaAppender | None:
        """How to reach PostgreSQL, on a replica."""

    @abstractmethod
    def _restarted_daemon(self) -> bool:
        """Whether a daemon runs again, which this cache had started before."""

    def embed(self, text: str | None, model: str | None = None) -> Vector:
        """The vector of a text, (dimension,) float32, the caller's own; computed once for all workers of this ledger.

        Parameters:
            text: up to 2^20 characters; None reads as "".
            model: the name of an embedder; None for this cache's.

        Raises:
            InvalidTextError: no text, too long, or empty where the embedder has no vector for that.
            UnknownModelError: no embedder has this name.
            EmbedderError: the embedder failed; trying again later may help.
        """
        self._check_open()
        return (self._embeddings or self._open_embeddings()).embed(text, model)

    def embed_many(self, texts: Iterable[str | None], model: str | None = None) -> Matrix:
        """The vectors of texts, (n, dimension) float32, as `embed` has them; a text that comes twice is computed once.

        Raises:
            InvalidTextError, UnknownModelError, EmbedderError: as `embed`, and no text's vector is returned.
        """
        self._check_open()
        return (self._embeddings or self._open_embeddings()).embed_many(texts, model)

    @overload
    def search(
        self,
        query: Query,
        k: int = 5,
        scope: Iterable[int] | None = None,
        model: str | None = None,
        *,
        mode: Literal["meaning"] = "meaning",
        kinds: Collection[str] | None = None,
        roles: Collection[str] | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        distinct: bool = False,
    ) -> Hits[Hit]: ...

    @overload
    def search(
        self,
        query: Query,
        k: int = 5,
        scope: Iterable[int] | None = None,
        model: str | None = None,
        *,
        mode: WordMode,
        kinds: Collection[str] | None = None,
        roles: Collection[str] | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        distinct: bool = False,
    ) -> Hits[Match]: ...

    def search(
        self,
        query: Query,
        k: int = 5,
        scope: Iterable[int] | None = None,
        model: str | None = None,
        *,
        mode: SearchMode = "meaning",
        kinds: Collection[str] | None = None,
        roles: Collection[str] | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        distinct: bool = False,
    ) -> Hits[Any]:
        """The `k` events nearest to a query, best first, ties by ascending id.

        By meaning: the events nearest to a text or a vector, by cosine similarity: (event id, similarity). Exact over
        all events that have a vector, as a float64 search over the stored vectors; events that the daemon has not taken
        in yet are embedded here, up to a number that the result reports.

        By words: the events that hold words, identifiers or phrases of a text, by BM25. Exact over the published index
        and the events after it. Any text is a query: `"..."` is a phrase that each hit must hold, and `-` right before
        a word or a phrase excludes it.

        Parameters:
            query: a text that is not empty, or, by meaning, (dimension,) numbers.
            k: 1 to `limits.SEARCH_K_MAX`.
            scope: only these event ids; None for all.
            model: whose vectors are searched; None for this cache's embedder where one was named (in `connect` or
                `PMM_EMBEDDER`), otherwise for that with which the daemon embeds events. `imported-<dimension>` takes
                vectors only.
            mode: `"meaning"`; `"words"`; `"hybrid"`: both, fused by rank; `"auto"`: as `"hybrid"`, with more weight on
                the words where the query has a phrase, a digit or a rare word, or where the model is `local-bow`, and
                by words alone where nothing can be embedded and no model is named (`problem` of the result says why).
                In all modes but `"meaning"` a hit is a `Match`.
            kinds: only events of these kinds.
            roles: only messages of these roles: `"user"`, `"assistant"`.
            since: only events after this event id, or from this time on; times are compared with `ts`.
            until: only events up to this event id or time, included; of a date, the whole day.
            distinct: return only the best of events whose texts differ in case, white space and punctuation alone.

        Raises:
            ConfigError: an argument means nothing, or this SQLite has no FTS5.
            InvalidTextError, InvalidVectorError: the query cannot be used, or has another dimension than the table.
            UnknownModelError: the query is a text, and no embedder has this name.
            EmbedderError: the embedder failed.
            SnapshotUnavailableError: no vectors of this model are published.
        """
        self._check_open()
        if mode == "meaning" and kinds is roles is since is until is None and not distinct:
            return (self._searching or self._open_searching()).search(query, k, scope, model)
        finding = self._finding or self._open_finding()
        return finding.search(query, k, scope, model, mode, kinds, roles, since, until, distinct)

    @overload
    def recall(
        self,
        query: Query,
        k: int = 5,
        scope: Iterable[int] | None = None,
        model: str | None = None,
        *,
        mode: Literal["meaning"] = "meaning",
        kinds: Collection[str] | None = None,
        roles: Collection[str] | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        distinct: bool = False,
    ) -> Hits[Recollection]: ...

    @overload
    def recall(
        self,
        query: Query,
        k: int = 5,
        scope: Iterable[int] | None = None,
        model: str | None = None,
        *,
        mode: WordMode,
        kinds: Collection[str] | None = None,
        roles: Collection[str] | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        distinct: bool = False,
    ) -> Hits[MatchedEvent]: ...

    def recall(
        self,
        query: Query,
        k: int = 5,
        scope: Iterable[int] | None = None,
        model: str | None = None,
        *,
        mode: SearchMode = "meaning",
        kinds: Collection[str] | None = None,
        roles: Collection[str] | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        distinct: bool = False,
    ) -> Hits[Any]:
        """As `search`, with the events themselves."""

        def found() -> Hits[Any]:
            hits = self.search(
                query, k, scope, model, mode=mode, kinds=kinds, roles=roles, since=since, until=until, distinct=distinct
            )
            return hits.with_events(self._log.get_event)

        self._check_open()
        # A search may still be in a file that was replaced: the log, which looks at the path, then closes that.
        return self._reader.in_one_file(found)

    def context(
        self,
        user_text: str | None = None,
        reflections: int = 3,
        recall: int = 0,
        messages: int = 0,
        *,
        recall_mode: SearchMode = "meaning",
    ) -> Context:
        """The context for answering a user, all at one position; `str()` of it is a block for a system prompt.

        Parameters:
            user_text: the message to answer; without it, nothing is recalled.
            reflections: how many of the newest, 0 to 32.
            recall: how many past messages similar to `user_text`, 0 to 100. Where they cannot be had (nothing is
                published, the embedder fails), `recall_problem` of the context says so.
            messages: how many of the last of the conversation, 0 to 64.
            recall_mode: as `mode` of `search`; `"auto"` also finds names and identifiers. Quotes and `-` mean nothing
                here.

        Raises:
            ConfigError: one of the numbers is none or out of its range, or there is no such mode.
            InvalidTextError: `user_text` is no text, or longer than any that is embedded.
            UnknownModelError: `recall` is used, and this cache's embedder does not exist.
        """
        with late_imports:
            from pmm_shm_client.context import ContextRequest

        request = ContextRequest.of(user_text, reflections, recall, messages, recall_mode)
        if not recall:
            return self._context_at(self.frame(), request)
        return self._reader.in_one_file(lambda: self._context_at(self.frame(), request))

    def _context_at(self, frame: Frame, request: ContextRequest) -> Context:
        with late_imports:
            from pmm_shm_client.context import make_context

        return make_context(frame, request, partial(self._messages_like, request.recall_mode), self._log.get_event)

    def _messages_like(self, mode: str, text: str, k: int, until_id: int) -> Hits[Any]:
        """The `k` messages most similar to another one, up to an event."""
        finding = self._finding or self._open_finding()
        roles = ("user", "assistant")
        return finding.search(text, k, None, None, mode, roles=roles, until=until_id, is_message=True)

    def _open_searching(self) -> Searching:
        with late_imports:
            from pmm_shm_client.searching import Searching

        made = Searching(self._reader, self._embeddings or self._open_embeddings())
        result: Searching = vars(self).setdefault("_searching", made)
        return result

    def _open_finding(self) -> Finder:
        with late_imports:
            from pmm_shm_client.finding import Finder
            from pmm_shm_client.word_search import WordSearching

        searching = self._searching or self._open_searching()
        made = Finder(self._reader, searching, WordSearching(self._reader, self._instance))
        result: Finder = vars(self).setdefault("_finding", made)
        return result

    def _open_texts(self) -> TextTableReader:
        with late_imports:
            from pmm_shm.vectors.text_table_reader import TextTableReader

        with self._reader.connection.lock:
            if self._texts is None:
                self._texts = TextTableReader(self._instance, self._reader.connection)
            return self._texts

    def _open_embeddings(self) -> Embeddings:
        with late_imports:
            from pmm_shm_client.embeddings import Embeddings

        shared = self._open_texts() if self._embeds_shared else None
        counter = self._counters["embedding"]
        made = Embeddings(
            self._instance, self._embedder, shared, self._reporter, counter, self._timeout_s, self._restarted_daemon
        )
        source = self._source() if self._embeds_shared else None
        if source is not None:
            with late_imports:
                from pmm_shm_client.source_vectors import SourceEmbedder
            made.wrap = lambda embedder: SourceEmbedder(embedder, source.new_server())
        # In one step: another thread may make one, too.
        result: Embeddings = vars(self).setdefault("_embeddings", made)
        return result

    def _embedding_numbers(self, daemon: DaemonEmbeddingStats | None) -> EmbeddingStats:
        own, counter = self._embeddings, self._counters["embedding"]
        here = len(own.local) if own is not None else 0
        return {
            "hits": counter.hits,
            "misses": counter.misses,
            "hit_rate": counter.hit_rate,
            "maxsize": limits.LOCAL_TEXT_VECTORS_MAX if daemon is None else daemon["text_vectors_max"],
            "currsize": here if daemon is None else daemon["text_vectors"],
            "leases_granted": 0 if daemon is None else daemon["leases_granted"],
            "lease_waits": 0 if daemon is None else daemon["lease_waits"],
            "leases_expired": 0 if daemon is None else daemon["leases_expired"],
        }


def checked_default(embedder: object) -> Embedder | str | None:
    """The default model of a cache. Raises `ConfigError`."""
    if embedder is None:
        return None
    with late_imports:
        from pmm_shm.names import checked_model_name
        from pmm_shm.vectors.embedder import Embedder, checked_embedder

    return checked_embedder(embedder) if isinstance(embedder, Embedder) else checked_model_name(embedder)
