"""How the chat breaks its lines."""

from __future__ import annotations

import io
import time

import pyte
import pytest
from rich.console import Console

from pmm_shm_chat.formatting import formatted
from pmm_shm_chat.markdown import Blocks, is_markdown, readable
from pmm_shm_chat.wrapping import LineWrapper

# What is shown.


def flowed(*pieces: str, width: int = 30, indent: int = 2) -> list[str]:
    shown: list[str] = []
    flow = LineWrapper(shown.append, width, indent)
    for piece in pieces:
        flow.add(piece)
    flow.end()
    return "".join(shown).split("\n")


def test_words_are_not_torn() -> None:
    text = "the quick brown fox jumps over the lazy dog and runs away"
    lines = flowed(*text, width=24)
    assert all(len(line) <= 24 for line in [" " * 2 + lines[0], *lines[1:]])
    assert " ".join(line.strip() for line in lines) == text
    assert flowed(text, width=24) == lines


def test_lines_of_the_text_stay() -> None:
    assert flowed("a\n\n  b", " c\n") == ["a", "  ", "    b c", "  "]


def test_words_longer_than_a_line_and_scripts_without_spaces() -> None:
    assert "".join(line.strip() for line in flowed("x" * 100)) == "x" * 100
    # The terminal breaks it: so it is copied whole, and what follows it is not torn.
    address = "https://example.org/" + "x" * 60
    assert flowed(*f"See {address} it is good") == ["See", f"  {address} it is", "  good"]
    lines = flowed("今日はとても良い天気ですから散歩に行きましょう")
    assert all(len(line.strip()) <= 14 for line in lines)
    assert "".join(line.strip() for line in lines).startswith("今日は")


def test_readable() -> None:
    assert readable("a\r\nb\tc\x1b[1m\n") == "a\nb    c\\x1b[1m\n"
    # Of Japanese, French and Persian, and an emoji of several.
    ordinary = "\u3000東京 à\xa0! 1\u202f000 \u0645\u06cc\u200c\u062e \U0001f468\u200d\U0001f4bb"
    assert readable(ordinary) == ordinary
    # These could show a text in another order, hide it, or break the line.
    assert readable("a\u202eb\u200bc\u2028d\x85") == "a\\u202eb\\u200bc\\u2028d\\x85"


@pytest.mark.parametrize("word", ["長い" * 40, "https://example.org/" + "x" * 80])
def test_no_cell_of_a_table_is_cut(word: str) -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    console.print(formatted(f"| a | b |\n|---|---|\n| 1 | {word} |", console))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    assert "".join(shown.split()).endswith(word)


def test_flow_is_quick() -> None:
    start = time.process_time()
    flowed(*["word and "] * 20_000)
    assert time.process_time() - start < 3


# Blocks of Markdown.


def split(*pieces: str) -> tuple[str, list[str]]:
    """The text that is shown while it comes, and the blocks."""
    blocks, shown, found = Blocks(), "", []
    for piece in pieces:
        for part, block in blocks.add(piece):
            shown += part
            found += [] if block is None else [block]
    last = blocks.end()
    return shown, found + ([] if last is None else [last])


def test_blocks_end_at_blank_lines_outside_of_code() -> None:
    text = "# a\n\nb\nc\n\n\n```py\nx\n\ny\n```\n\n~~~\n```\n\n~~~\n\nlast"
    blocks = ["# a", "b\nc", "```py\nx\n\ny\n```", "~~~\n```\n\n~~~", "last"]
    assert split(text) == split(*text) == (text, blocks)
    assert split("```\nnever closed\n\nmore") == ("```\nnever closed\n\nmore", ["```\nnever closed\n\nmore"])
    assert split("", "\n\n") == ("\n\n", [])


def test_what_is_indented_below_a_list_belongs_to_it() -> None:
    listed = "1. one\n\n   - a\n\n    ```py\n    x\n\n    y\n    ```"
    text = f"{listed}\n\n\n2. two\n\nend"
    assert split(text) == split(*text) == (text, [listed, "2. two", "end"])
    # A model that begins its lines with a space.
    assert split(*"- a\n\n b")[1] == ["- a", " b"]


def test_a_fence_ends_at_one_that_is_as_long() -> None:
    text = "````md\n```py\n\n```\n````\n\n~~~\n~~~ no end\n\n~~~\n\nend"
    blocks = ["````md\n```py\n\n```\n````", "~~~\n~~~ no end\n\n~~~", "end"]
    assert split(text) == split(*text) == (text, blocks)


def test_code_behind_the_mark_of_a_list_ends_where_it_ends() -> None:
    listed = "1. ```sh\n   ls\n\n- ```\n\n   ```"
    text = f"{listed}\n\n- - ~~~\n    x\n    ~~~\n\nend\n\nmore"
    assert split(text) == split(*text) == (text, [listed, "- - ~~~\n    x\n    ~~~", "end", "more"])


def test_code_within_a_line_begins_no_block() -> None:
    assert split(*"```x``` is code\n\nend")[1] == ["```x``` is code", "end"]


def markdown(text: str) -> str:
    console = Console(file=io.StringIO(), width=70, force_terminal=True, color_system=None)
    console.print(formatted(text, console), soft_wrap=True)
    return console.file.getvalue().removesuffix("\n")  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("A **Vec**<String> of <b>", "A Vec<String> of <b>"),
        ("<details>\nwords **b**\n</details>", "<details>\nwords b\n</details>"),
        ("a <!-- note --> **b**", "a <!-- note --> b"),
        ("**b** ![a cat](https://e.org/c.png)", "b !a cat (https://e.org/c.png)"),
        ("**b** [a][1]\n\n[1]: https://e.org", "b [a][1]\n\n[1]: https://e.org"),
        ("<https://e.org/a> [https://e.org](https://e.org) [b](c)", "https://e.org/a https://e.org b (c)"),
        ("**b** <ana@e.org>", "b ana@e.org"),
        ("**Roses**\nare red", "Roses\nare red"),
        ("> **two**\n> lines", "▌ two\n▌ lines"),
        (r"**b** \(a_1\), \[ x\,dx \], $\{a\}$, \*no\* &amp; \&amp;", r"b \(a_1\), \[ x\,dx \], $\{a\}$, *no* & &amp;"),
    ],
)
def test_no_word_of_an_answer_is_lost(text: str, shown: str) -> None:
    assert markdown(text) == shown
    assert is_markdown(text)


def test_tags_alone_are_plain_words() -> None:
    assert not any(map(is_markdown, ["List<String>", "<div>\nwords\n</div>", "[1]: https://e.org/x"]))


def test_plain_words_are_no_markdown() -> None:
    assert not any(map(is_markdown, ["words", "two\nlines", "2 * 3 < 7, a_b_c", "“quoted” – 東京"]))
    assert all(map(is_markdown, ["# a", "- a", "1. a", "a **b**", "`a`", "> a", "[a](b)", "```\na\n```", "    code"]))


LONG = 'print("' + "a long line of code, " * 6 + '")'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"```python\ndef f():\n\n\n    {LONG}\n```", f"def f():\n\n\n    {LONG}"),
        (f"1. Run:\n   ```sh\n   {LONG}\n   ```\n2. Look.", f"1. Run:\n\n{LONG}\n\n2. Look."),
        (f"- ```\n  {LONG}\n    x\n  ```\n- two", f" •\n\n{LONG}\n  x\n\n • two"),
        (f"> ```\n> {LONG}\n> ```", f"▌\n\n{LONG}"),
        ("words\n\n    x = 1\n      y = 2", "words\n\nx = 1\n  y = 2"),
        ("```nonsense\n x\n\n```\n```\n```", " x"),
        ("```\nnever closed\n", "never closed"),
    ],
)
def test_code_can_be_copied(text: str, shown: str) -> None:
    assert markdown(text) == shown


ADDRESS = "https://example.org/" + "x" * 120


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"See **it**, {ADDRESS} and more.", f"See it,\n{ADDRESS}\nand more."),
        (f"- see [it]({ADDRESS})\n- two", f" • see it\n   ({ADDRESS})\n • two"),
        (f"> **{ADDRESS}**", f"▌ {ADDRESS}"),
        (f"**b** 東京{ADDRESS}", f"b\n東京{ADDRESS[:66]}\n{ADDRESS[66:136]}\n{ADDRESS[136:]}"),
    ],
)
def test_addresses_can_be_copied(text: str, shown: str) -> None:
    assert markdown(text) == shown


def test_headings_and_numbers_stay_as_they_were_written() -> None:
    assert markdown("# One\n\n3. three\n4. four") == "One\n\n3. three\n4. four"


def test_lines_of_which_terminals_differ_are_broken() -> None:
    """One cell or two, for a heart; one pair of cells or four, for a family."""
    assert flowed("I \u2764\ufe0f" + "x" * 30) == ["I", "  \u2764\ufe0f" + "x" * 27, "xxx"]
    shown: list[str] = []
    flow = LineWrapper(shown.append, 24)
    flow.add_verbatim("\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466" * 5)
    assert flow.rows == "".join(shown).count("\n") == 1


@pytest.mark.parametrize("word", ["x" * 10, "x" * 100, "東京" * 20, "a " * 30])
def test_the_rows_of_a_terminal_are_counted(word: str) -> None:
    """A stand-in of a terminal counts them, too."""
    written: list[str] = []
    flow = LineWrapper(written.append, 24, column=8)
    flow.add(f"some {word}\n")
    flow.add_verbatim(f"  code {word}")
    flow.add("\nend")
    flow.end()
    screen = pyte.Screen(24, 80)
    pyte.Stream(screen).feed("x" * 8 + "".join(written).replace("\n", "\r\n"))
    assert flow.rows == screen.cursor.y
