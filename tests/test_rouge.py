"""`lib/evaluation/rouge.py`."""

import itertools
import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from lib.evaluation.known_answers import OF_EVERY_DAY, OF_ICONWORLD
from lib.evaluation.rouge import rouge_l_scores
from lib.world import words as world


def longest_common_subsequence(one, other):
    """By trying every selection of words, longest first."""
    for length in range(len(one), 0, -1):
        for words in itertools.combinations(one, length):
            rest = iter(other)
            if all(word in rest for word in words):
                return length
    return 0


def test_rouge_l_is_the_longest_common_subsequence_over_words():
    draw = random.Random(0)
    words = ["cup", "red", "blue", "cat", "on", "box"]
    for _ in range(100):
        reference = draw.choices(words, k=draw.randint(1, 7))
        text = draw.choices(words, k=draw.randint(1, 7))
        common = longest_common_subsequence(reference, text)
        precision, recall, f = rouge_l_scores(" ".join(reference), " ".join(text))
        assert precision == pytest.approx(common / len(text))
        assert recall == pytest.approx(common / len(reference))
        assert f == pytest.approx(2 * common / (len(text) + len(reference)))


ENGLISH = [*(answer for answer, _, _ in OF_ICONWORLD), *world.REFUSALS,
           *(each.item.answer for each in OF_EVERY_DAY),
           *(each.item.reference for each in OF_EVERY_DAY),
           *(world.answer(thing) for thing in world.THINGS if thing.parts),
           "It's 3.5 kg, isn't it?", "snake_case\tand\nlines", "running runs runners"]


def test_of_ascii_texts_it_is_rouge_score_s_own_number():
    own, draw = RougeScorer(["rougeL"], use_stemmer=True), random.Random(0)
    texts = [text for text in ENGLISH if text.isascii() and any(map(str.isalnum, text))]
    pairs = [(text, text) for text in texts] + [draw.choices(texts, k=2) for _ in range(300)]
    assert len(texts) > 100
    for one, other in pairs:
        assert rouge_l_scores(one, other) == tuple(own.score(one, other)["rougeL"])


SCRIPTS = [
    ("Chinese", "这是一个红色的茶碗。"),
    ("Japanese", "赤いカップです。"),
    ("Thai", "ถ\u0e49วยส\u0e35แดง"),
    ("Korean", "빨간 컵입니다."),
    ("Arabic", "هذا كوب أحمر."),
    ("Hebrew", "זה כוס אדום."),
    ("Devanagari", "यह लाल कप ह\u0948।"),
    ("Cyrillic", "Это красная чашка."),
    ("accents", "Été à l'île."),
]


@pytest.mark.parametrize(("script", "text"), SCRIPTS)
def test_a_text_of_any_script_has_all_of_itself_and_nothing_of_another(script, text):
    assert rouge_l_scores(text, text) == (1, 1, 1), script
    assert rouge_l_scores(text, text.upper() + "!!") == (1, 1, 1), script
    for other, words in SCRIPTS:
        if other != script:
            assert max(rouge_l_scores(text, words)) < 0.5, (script, other)


HALVES = [
    ("two of four Chinese signs", "红色茶碗", "茶碗", (1, 1 / 2, 2 / 3)),
    ("two of three Russian words", "Это наш дом",
     "наш дом", (1, 2 / 3, 4 / 5)),
    ("an accent tells two words apart", "pêche", "peche", (0, 0, 0)),
    ("however it is encoded", "pêche", "pe\u0302che", (1, 1, 1)),
    ("English beside it is stemmed as ever", "painted cafés", "paint cafés", (1, 1, 1)),
    ("an answer without words has nothing of a reference with some", "cup", "...", (0, 0, 0)),
    ("nor the other way round", "...", "cup", (0, 0, 0)),
    ("two equal texts without words are equal", "\U0001f44d", " \U0001f44d", (1, 1, 1)),
    ("two different ones are not", "\U0001f44d", "\U0001f44e", (0, 0, 0)),
    ("digits are words", "42", "42.", (1, 1, 1)),
]


@pytest.mark.parametrize(("reason", "reference", "answer", "scores"), HALVES)
def test_of_other_scripts_it_is_what_a_hand_calculation_gives(reason, reference, answer, scores):
    assert rouge_l_scores(reference, answer) == pytest.approx(scores), reason
