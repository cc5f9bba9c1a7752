"""Separates the thinking of a reasoning model from its answer.

Many endpoints send both as one text, with the thinking between tags such as `<think>` and `</think>`. Some chat
templates put the opening tag into the prompt. Then only the closing tag arrives, and all text before it is thinking.

A tag after a backtick, or between two lines of three backticks, is part of the text: the answer is about tags. So is an
opening tag within a line of an answer that ends without a closing one.
"""

from __future__ import annotations

import re
from itertools import chain

_PREFIXES = r"\w+:|inner_|longcat_|ant"
_NAMES = (
    rf"(?:{_PREFIXES})?"
    r"(?:think|thinking|thoughts?|thought_process|reason|reasoning|reflection|scratch_?pad|analysis|monologue)"
)
_CLOSING = (
    rf"</\s*{_NAMES}\s*>|\[/{_NAMES}\]|◁/{_NAMES}▷|<\|(?:end_(?:of_)?(?:thought|thinking)|/{_NAMES}|inner_suffix)\|>|"
    r"<channel\|>"
)
_OPENING = (
    rf"<{_NAMES}(?:\s[^<>\n]*)?>|\[{_NAMES}\]|◁{_NAMES}▷|"
    rf"<\|(?:(?:begin|start)_(?:of_)?(?:thought|thinking)|channel|{_NAMES}|inner_prefix)\|>|<\|channel>"
)
# Before this one, all is thinking, whatever else stands there: other channels, or the beginning of a message.
_FINAL = r"\bfinal<\|message\|>"
_TOKEN = re.compile(rf"(?P<fence>```)|(?P<closing>{_CLOSING}|(?P<final>{_FINAL}))|{_OPENING}", re.IGNORECASE)
_BEGINS_TOKEN = re.compile(r"[`<\[◁]")
"""A character that each token has."""
_TAG_CHARS_MAX = 80
_INCOMPLETE = re.compile(rf"`{{0,2}}(?:[<\[◁][^<>\[\]◁▷`\n]{{0,{_TAG_CHARS_MAX}}})?\Z")
"""The end of a text that may be the beginning of a token."""


class ThinkingFilter:
    """The answer within a text that arrives in pieces, which may cut a tag anywhere.

    Attributes:
        has_thought: whether some of the text was thinking.
        is_retracted: whether text that was returned has turned out to be thinking since the last call.
    """

    def __init__(self) -> None:
        self._answer: list[str] = []
        self._held = ""
        self._is_thinking = False
        # Since an opening tag within a line: perhaps it is part of the text.
        self._aside: list[str] | None = None
        self._is_in_fence = False
        self.has_thought = False
        self.is_retracted = False

    @property
    def answer(self) -> str:
        """The answer so far."""
        return "".join(self._answer)

    def add(self, piece: str) -> str:
        """Take the next piece; returns what it adds to the answer."""
        return self._read(self._held + piece, is_end=False)

    def end(self) -> str:
        """The rest of the answer: text that could have been a tag or the beginning of one."""
        return self._read(self._held, is_end=True)

    def _read(self, text: str, *, is_end: bool) -> str:
        self.is_retracted = False
        added, done = "", 0
        for token in _TOKEN.finditer(text):
            if self._is_thinking:
                if token["closing"]:
                    self._is_thinking, done = _is_quoted(token), token.end()
                    if not self._is_thinking:
                        self._aside = None
                        if token["final"]:
                            added = self._retracted()
            elif token["fence"]:
                self._is_in_fence = not self._is_in_fence
            elif not self._is_in_fence and not _is_quoted(token):
                self.has_thought = True
                if token["closing"]:
                    added = self._retracted()
                else:
                    added, self._is_thinking = added + text[done : token.start()], True
                    self._aside = [token[0]] if self._is_within_line(added) else None
                done = token.end()
        rest = text[done:]
        if self._is_thinking and self._aside is not None and is_end:
            added, self._is_thinking, self._held = added + "".join(self._aside) + rest, False, ""
        elif self._is_thinking:
            self._held = rest[-_TAG_CHARS_MAX:]
            if self._aside is not None:
                self._aside.append(rest[:-_TAG_CHARS_MAX])
        else:
            incomplete = None if is_end else _INCOMPLETE.search(rest)
            end = len(rest) if incomplete is None else incomplete.start()
            added, self._held = added + rest[:end], rest[end:]
        if not self._answer:
            added = added.lstrip()
        if added:
            self._answer.append(added)
        return added

    def _retracted(self) -> str:
        """Take back all of the answer so far."""
        self.is_retracted = self.is_retracted or bool(self._answer)
        self._answer.clear()
        return ""

    def _is_within_line(self, added: str) -> bool:
        """Whether words stand on the last line of the answer."""
        for part in chain((added,), reversed(self._answer)):
            _, end_of_line, line = part.rpartition("\n")
            if line.strip() or end_of_line:
                return bool(line.strip())
        return False


def _is_quoted(tag: re.Match[str]) -> bool:
    return tag.string[: tag.start()].endswith("`")


def without_thinking(text: str) -> str:
    """The answer in a whole text."""
    if _BEGINS_TOKEN.search(text) is None:
        return text
    whole = ThinkingFilter()
    whole.add(text)
    whole.end()
    return whole.answer.strip() if whole.has_thought else text
