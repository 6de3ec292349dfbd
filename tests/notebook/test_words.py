"""Where two answers differ."""

from __future__ import annotations

from jupyter_dsserve.notebook.words import marked


def test_words_that_differ_are_marked_on_both_sides() -> None:
    assert marked("return a + b", "return a - b") == ("return a <mark>+</mark> b", "return a <mark>-</mark> b")
    assert marked("the cat sat", "the black cat sat") == ("the cat sat", "the<mark> black</mark> cat sat")
    assert marked("same", "same") == ("same", "same")
    assert marked("", "all") == ("", "<mark>all</mark>")


def test_a_word_is_marked_as_a_whole_and_nothing_in_it_is_html() -> None:
    assert marked("<b>one", "<b>ones") == ("&lt;b&gt;<mark>one</mark>", "&lt;b&gt;<mark>ones</mark>")


def test_what_is_too_long_to_compare_is_shown_as_it_is() -> None:
    assert marked("a " * 3000, "b") == ("a " * 3000, "b")
