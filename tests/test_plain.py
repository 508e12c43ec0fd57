"""`lib/evaluation/plain.py`."""

import pytest

from lib.evaluation import plain

WORDS = [
    ("emphasis, quotes and bullets",
     '> **Red** _cup_, "blue"\n- cat', ["red", "cup", "blue", "cat"]),
    ("an emoji with its selector", "\u2764\ufe0f cup \U0001f44d\U0001f3fd", ["cup"]),
    ("full-width letters and a no-break space", "Ｒｅｄ\u00a0cup", ["red", "cup"]),
    ("a soft hyphen and a mark of direction", "c\u00adup\u200f", ["cup"]),
    ("a zero-width space parts words", "red\u200bcup", ["red", "cup"]),
    ("composed and decomposed accents", "café cafe\u0301", ["café", "café"]),
    ("Cyrillic and Greek", "Красная κύπα.",
     ["красная", "κύπα"]),
    ("Arabic with a vowel sign", "ك\u064fوب؟", ["ك\u064fوب"]),
    ("Devanagari keeps its vowel signs", "किताब।",
     ["किताब"]),
    ("Korean has spaces", "빨간 컵", ["빨간", "컵"]),
    ("Chinese has none", "红茶碗。", ["红", "茶", "碗"]),
    ("nor Japanese", "赤いカップ",
     ["赤", "い", "カ", "ッ", "プ"]),
    ("a Thai sign keeps its mark", "ถ\u0e49วย",
     ["ถ\u0e49", "ว", "ย"]),
    ("two scripts in one text", "AI茶 2kg", ["ai", "茶", "2kg"]),
    ("signs alone", "…!? \u2014", []),
]


@pytest.mark.parametrize(("reason", "text", "words"), WORDS)
def test_the_words_of_a_text_are_letters_and_digits_with_their_marks(reason, text, words):
    assert plain.words(text) == words, reason


@pytest.mark.parametrize("sign", "\u2018\u2019\u201bʼ\u2032`\u00b4＇")
def test_every_apostrophe_is_made_straight(sign):
    assert plain.straight(f"don{sign}t") == "don't"


@pytest.mark.parametrize("sign", "\u201c\u201d\u201e\u00ab\u00bb＂\u301d")
def test_every_quotation_mark_is_made_straight(sign):
    assert plain.straight(f"{sign}no") == '"no'
