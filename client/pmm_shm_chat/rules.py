"""The events that follow from the statements in a message.

| statement       | speaker        | events                                          |
| --------------- | -------------- | ----------------------------------------------- |
| I will ...      | the assistant  | `commitment_open`                               |
| I must ...      | the assistant  | `autonomy_directive`                            |
| Your name is X  | the user       | `identity_adopt`                                |
| Done: TEXT      | both           | `evidence_candidate`, then `commitment_close`   |

Only the assistant can commit itself, and only the user can name it: "I will ..." from the user promises nothing on the
assistant's behalf, and "your name is ..." from the assistant is about the user. Both may say that something is done.

A statement begins a sentence that is neither a question nor a quotation (`sentences`). A negated promise or name does
not count, but "I must not ..." is a directive. A promise with the text of an open commitment does not open another one.
No text makes these functions raise, and every event can be appended.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from pmm_shm.folds.self_model import Cid
from pmm_shm.vectors.embedder import encodable
from pmm_shm_chat.sentences import Sentence, sentences

Speaker = Literal["user", "assistant"]
EventDraft = tuple[str, str, dict[str, Any]]
"""(kind, content, meta)"""
LoadOpen = Callable[[], Mapping[Cid, Mapping[str, Any]]]
"""Returns the open commitments, cid to meta, in order; called only if a statement is about commitments."""

STATEMENTS_MAX = 16
"""Further statements of a message are ignored."""
NAME_CONFIDENCE = 0.95
"""Of a name that the user states explicitly; adoptions of 0.9 and above count as confident."""

_SOURCES: Mapping[Speaker, str] = {"user": "user", "assistant": "reply"}
_NAME_CHARS_MAX = 64
_NAME_WORDS_MAX = 4
_COMPARED_CHARS_MAX = 500
_SIMILAR = 0.5

_WILL = re.compile(r"i(?:\s+will|['’]ll)\s+", re.IGNORECASE)
_NOT = re.compile(r"(?:(?:\w+ly|also|still|just)\s+)?(?:not|never|no longer|nothing)\b", re.IGNORECASE)
_MUST = re.compile(r"i\s+must\s+", re.IGNORECASE)
_MERE_PHRASE = re.compile(r"(?:say|admit|confess|have\s+(?:been|\w+ed))\b", re.IGNORECASE)
_NAME = re.compile(r"your\s+name\s+is\s+(?:now\s+)?", re.IGNORECASE)
_NAME_QUOTED = re.compile(r"[\"'“‘«](.+)[\"'”’»]$")  # noqa: RUF001
_AFTER_NAME = re.compile(r"[,;:()–]|(?:and|but|because|from|so|now)\b")
_NO_NAMES = frozenset(
    re.findall(
        r"\w+",
        """a all an any anything beautiful changed correct fine good great hard here important irrelevant it just known
        like long lost lovely mine missing new nice no none not nothing ok odd old on pretty private right secret set
        short something still strange that the this too undecided unknown unset up very weird what whatever where wrong
        yes yours""",
    )
)
"""Words after "your name is" that are not names."""
_DONE = re.compile(r"done\s*:\s*", re.IGNORECASE)
_FILLERS = frozenset(re.findall(r"\w+", "a an and at for i in it my of on that the this to will with you"))
"""Words that do not identify a commitment."""
_QUOTES = " \t.,;:!#'\"’‘“”`«»"  # noqa: RUF001


class Origin(NamedTuple):
    """The message that contains a statement."""

    event_id: int
    speaker: Speaker

    def meta(self, **more: Any) -> dict[str, Any]:
        """The meta of an event: the common keys, and `more`."""
        return {**more, "origin_eid": self.event_id, "source": _SOURCES[self.speaker]}


class _Known(NamedTuple):
    text: str
    words: tuple[str, ...]


class OpenCommitments:
    """The open commitments after the statements so far."""

    def __init__(self, load: LoadOpen) -> None:
        self._load = load
        self._loaded: dict[Cid, _Known] | None = None

    def add(self, cid: Cid, text: str) -> None:
        """Add a commitment that was just opened."""
        self._all()[cid] = _Known(text, _words(text))

    def pop(self, cid: Cid) -> str:
        """Remove a commitment that was just closed; returns its text."""
        return self._all().pop(cid).text

    def has(self, text: str) -> bool:
        """Whether a commitment with the same words is open."""
        words = _words(text)
        return any(known.words == words for known in self._all().values())

    def named(self, reference: str) -> Cid | None:
        """The commitment that a text refers to by its cid, its words, or most of them; None if several fit.

        Of several with the same words, the oldest.
        """
        return _by_cid(reference, self._all()) or _by_words(_words(reference), self._all())

    def _all(self) -> dict[Cid, _Known]:
        if self._loaded is None:
            self._loaded = {cid: _known_of(meta) for cid, meta in self._load().items()}
        return self._loaded


def events_of(text: str, speaker: Speaker, event_id: int, load_open: LoadOpen) -> list[EventDraft]:
    """The events that follow from a message, in the order to append them.

    Parameters:
        event_id: of the message.
    """
    origin, open_ones = Origin(event_id, speaker), OpenCommitments(load_open)
    made: list[EventDraft] = []
    statements = 0
    for sentence in sentences(encodable(text)):
        for rule in _RULES[speaker]:
            drafts = rule(sentence, origin, open_ones)
            if drafts is not None:
                made += drafts
                statements += 1
        if statements >= STATEMENTS_MAX:
            break
    return made


def cid_of(text: str, event_id: int) -> str:
    """The cid of a commitment, determined by its event and its text, and unique to both."""
    return f"{event_id}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


# The rules. Each returns the events of one sentence, an empty list if nothing follows, or None if it does not apply.


def commitment(sentence: Sentence, origin: Origin, open_ones: OpenCommitments) -> list[EventDraft] | None:
    """Opens a commitment for "I will ..."; its text is the rest of the sentence."""
    text = _rest(_WILL, sentence)
    if text is None or _NOT.match(text):
        return None
    if open_ones.has(text):
        return []
    cid = cid_of(text, origin.event_id)
    open_ones.add(cid, text)
    return [("commitment_open", f"COMMIT: {text}", origin.meta(cid=cid, text=text))]


def directive(sentence: Sentence, origin: Origin, open_ones: OpenCommitments) -> list[EventDraft] | None:
    """Makes "I must ..." and "I must not ..." a directive; its text begins with "I must"."""
    text = _rest(_MUST, sentence)
    if text is None or _MERE_PHRASE.match(text):
        return None
    return [("autonomy_directive", f"I must {text}", origin.meta())]


def adoption(sentence: Sentence, origin: Origin, open_ones: OpenCommitments) -> list[EventDraft] | None:
    """Adopts the X of "Your name is X": capitalised words, a text in quotes, or one word that must be a name."""
    rest = _rest(_NAME, sentence)
    name = None if rest is None else _name(rest)
    if name is None:
        return None
    return [("identity_adopt", name, origin.meta(name=name, confidence=NAME_CONFIDENCE))]


def completion(sentence: Sentence, origin: Origin, open_ones: OpenCommitments) -> list[EventDraft] | None:
    """Closes the open commitment that "Done: TEXT" refers to, with the evidence before the close."""
    reference = _rest(_DONE, sentence)
    if reference is None:
        return None
    cid = open_ones.named(reference)
    if cid is None:
        return []
    text = open_ones.pop(cid)
    evidence = origin.meta(cid=cid, evidence_type="done", snippet=sentence.text)
    return [
        ("evidence_candidate", sentence.text, evidence),
        ("commitment_close", f"CLOSE: {text}".strip(), origin.meta(cid=cid)),
    ]


Rule = Callable[[Sentence, Origin, OpenCommitments], list[EventDraft] | None]
_RULES: Mapping[Speaker, tuple[Rule, ...]] = {
    "user": (adoption, completion),
    "assistant": (commitment, directive, completion),
}


def _rest(pattern: re.Pattern[str], sentence: Sentence) -> str | None:
    """The rest of a sentence after the words that it must begin with; None if it does not, or nothing follows."""
    match = pattern.match(sentence.masked)
    rest = sentence.text[match.end() :] if match else ""
    return rest if any(map(str.isalnum, rest)) else None


def _name(rest: str) -> str | None:
    quoted = _NAME_QUOTED.match(rest)
    if quoted is not None:
        name = quoted.group(1).strip()
        return name if 0 < len(name) <= _NAME_CHARS_MAX and any(map(str.isalnum, name)) else None
    words: list[str] = []
    for word in rest.split():
        bare = word.rstrip(",;:")
        if not _is_capitalised(bare):
            break
        words.append(bare)
        if bare != word:
            break
    name = " ".join(words)
    after = rest[len(name) :].lstrip()
    if not words:
        word = rest.lower()
        is_name = word.replace("-", "").isalnum() and word[0].isalpha() and word not in _NO_NAMES
        return rest if is_name and len(rest) <= _NAME_CHARS_MAX else None
    if len(words) > _NAME_WORDS_MAX or len(name) > _NAME_CHARS_MAX or (after and not _AFTER_NAME.match(after)):
        return None
    return name


def _is_capitalised(word: str) -> bool:
    """Whether a word begins as names do; in scripts without capitals, every word does."""
    return word[:1].isalpha() and not word[0].islower() and word.replace("-", "").replace("’", "").isalnum()


def _known_of(meta: Mapping[str, Any]) -> _Known:
    text = meta.get("text")
    return _known(text[:_COMPARED_CHARS_MAX] if isinstance(text, str) else "")


@lru_cache(maxsize=4_096)
def _known(text: str) -> _Known:
    # JSON can contain lone surrogates; the content of an event cannot.
    text = encodable(text)
    return _Known(text, _words(text))


def _words(text: str) -> tuple[str, ...]:
    words = re.findall(r"\w+", text.casefold())
    return tuple(words[2:] if words[:2] == ["i", "will"] else words)


def _by_cid(reference: str, known: Mapping[Cid, _Known]) -> Cid | None:
    whole = reference.strip(_QUOTES).casefold()
    first = whole.split(maxsplit=1)[0].strip(_QUOTES) if whole else ""
    # The first word of a text is a cid only if it has digits.
    wanted = {whole, first if any(map(str.isdigit, first)) else whole}
    return next((cid for cid in known if _cid_text(cid) in wanted), None)


def _cid_text(cid: Cid) -> str:
    if isinstance(cid, str):
        return cid.strip().casefold()
    # Python refuses to convert integers of several thousand digits.
    return str(cid) if cid.bit_length() <= 64 else ""


def _by_words(wanted: tuple[str, ...], known: Mapping[Cid, _Known]) -> Cid | None:
    named = set(wanted) - _FILLERS
    if not named:
        return None
    found: list[tuple[float, tuple[str, ...], Cid]] = []
    for cid, (_, words) in known.items():
        if words == wanted:
            return cid
        own = set(words) - _FILLERS
        score = len(named & own) / len(named | own)
        if score >= _SIMILAR or named <= own:
            found.append((score, words, cid))
    best = max((score for score, _, _ in found), default=0.0)
    candidates = [(words, cid) for score, words, cid in found if score == best]
    if len({words for words, _ in candidates}) != 1:
        return None
    return candidates[0][1]
