"""Separates the thinking of a reasoning model from its answer.

Many endpoints send both as one text, with the thinking between tags such as `<think>` and `</think>`. Some chat
templates put the opening tag into the prompt. Then only the closing tag arrives, and all text before it is thinking.

A tag after a backtick, or between two lines of three backticks, is part of the text: the answer is about tags.
"""

from __future__ import annotations

import re

_NAMES = r"(?:\w+:)?(?:think|thinking|thoughts?|thought_process|reason|reasoning|reflection|scratchpad|analysis)"
_CLOSING = rf"</\s*{_NAMES}\s*>|\[/{_NAMES}\]|◁/{_NAMES}▷|<\|end_(?:of_)?(?:thought|thinking)\|>|\bfinal<\|message\|>"
_OPENING = (
    rf"<{_NAMES}(?:\s[^<>\n]*)?>|\[{_NAMES}\]|◁{_NAMES}▷|<\|(?:(?:begin|start)_(?:of_)?(?:thought|thinking)|channel)\|>"
)
_TOKEN = re.compile(rf"(?P<fence>```)|(?P<closing>{_CLOSING})|{_OPENING}", re.IGNORECASE)
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
        """The rest of the answer: text that could have been the beginning of a tag."""
        return self._read(self._held, is_end=True)

    def _read(self, text: str, *, is_end: bool) -> str:
        self.is_retracted = False
        added, done = "", 0
        for token in _TOKEN.finditer(text):
            if self._is_thinking:
                if token["closing"]:
                    self._is_thinking, done = _is_quoted(token), token.end()
            elif token["fence"]:
                self._is_in_fence = not self._is_in_fence
            elif not self._is_in_fence and not _is_quoted(token):
                self.has_thought = True
                if token["closing"]:
                    added, self.is_retracted = "", bool(self._answer)
                    self._answer.clear()
                else:
                    added, self._is_thinking = added + text[done : token.start()], True
                done = token.end()
        rest = text[done:]
        if self._is_thinking:
            self._held = rest[-_TAG_CHARS_MAX:]
        else:
            incomplete = None if is_end else _INCOMPLETE.search(rest)
            end = len(rest) if incomplete is None else incomplete.start()
            added, self._held = added + rest[:end], rest[end:]
        if not self._answer:
            added = added.lstrip()
        if added:
            self._answer.append(added)
        return added


def _is_quoted(tag: re.Match[str]) -> bool:
    return tag.string[: tag.start()].endswith("`")


def without_thinking(text: str) -> str:
    """The answer in a whole text."""
    whole = ThinkingFilter()
    whole.add(text)
    whole.end()
    return whole.answer.strip() if whole.has_thought else text
