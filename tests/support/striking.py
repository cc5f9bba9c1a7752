"""Exceptions out of a signal handler, behind each call that some code makes, and where each of its functions begins."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any

# Python runs handlers as the last part of these. Tracing can raise behind them only, at the next step: where that is
# in another line, it may already be in a `finally` that the call is not in.
_CALLS = {number for name, number in dis.opmap.items() if name.startswith("CALL")}


class Struck(KeyboardInterrupt):
    """The exception of the handler."""


class _Handler:
    def __init__(self, module: ModuleType, point: int) -> None:
        self._file = module.__file__
        self._left = point
        self._before: dict[int, tuple[int, int]] = {}
        self.place: str | None = None

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != self._file:
            return None
        # Python 3.13 asks for a function of the frame's own first.
        frame.f_trace = self._trace_opcodes
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self._pass(frame)
        return self._trace_opcodes

    def _trace_opcodes(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            before = self._before.get(id(frame))
            self._before[id(frame)] = frame.f_code.co_code[frame.f_lasti], frame.f_lineno
            if before is not None and before[0] in _CALLS and before[1] == frame.f_lineno:
                self._pass(frame)
        elif event == "return":
            self._before.pop(id(frame), None)
        return self._trace_opcodes

    def _pass(self, frame: FrameType) -> None:
        if not self._left:
            sys.settrace(None)
            self.place = f"{frame.f_code.co_name}, line {frame.f_lineno}"
            raise Struck
        self._left -= 1


def strikes(module: ModuleType, action: Callable[[], object]) -> Iterator[str]:
    """Do something again and again, each time with the exception behind the next call in a module, or where its next
    function begins; gives the place, for a look at what is left. Ends with the first time that nothing struck.
    """
    point = 0
    while True:
        handler, before = _Handler(module, point), sys.gettrace()
        # From Python 3.12 on, opcodes are traced only if a frame has asked for them before.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(handler.trace)
        try:
            action()
        except Struck:
            pass
        finally:
            sys.settrace(before)
        if handler.place is None:
            return
        yield handler.place
        point += 1
