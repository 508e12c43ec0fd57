"""ROUGE-L of one answer, over the words of any script."""

from functools import cache

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

from lib.evaluation import plain


@cache
def rouge_l_scores(reference: str, answer: str) -> tuple[float, float, float]:
    """ROUGE-L precision, recall and F1 with stemmed words, each 0 to 1.

    With L the longest common subsequence of words: precision = L / words of the answer, recall =
    L / words of the reference. "the cup is blue" against the answer "a blue cup is here" has
    L = 2 ("cup is"): 2/5, 2/4 and 4/9. Two texts without any word ("42" is one, "!" is none) give
    1, 1 and 1 if they are the same, otherwise 0. Kept per distinct pair: unlearned models repeat
    themselves.
    """
    if not (plain.words(reference) or plain.words(answer)):
        same = float(reference.strip() == answer.strip())
        return same, same, same
    score = _scorer().score(reference, answer)["rougeL"]
    return score.precision, score.recall, score.fmeasure


class Words(Tokenizer):
    """Words of any script, those in ASCII stemmed: of ASCII texts exactly rouge_score's own.

    Its own tokenizer drops every letter but a to z, so that two equal Chinese answers score 0.
    """

    def __init__(self):
        self._ascii = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        """The words of a text in order; where a script has no spaces, its signs.

        >>> Words().tokenize("Painted cafés, 茶碗")
        ['paint', 'cafés', '茶', '碗']
        """
        words = plain.words(text)
        return [token for word in words
                for token in (self._ascii.tokenize(word) if word.isascii() else [word])]


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], tokenizer=Words())
