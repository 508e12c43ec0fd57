"""Texts of any script made comparable: signs that look alike made one, words found in them."""

import unicodedata

import regex

# Written without spaces between words: here each sign with its marks counts as a word.
SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"[{SPACELESS}]\p{{M}}*|[\p{{L}}\p{{N}}--[{SPACELESS}]]"
                      rf"[\p{{L}}\p{{N}}\p{{M}}--[{SPACELESS}]]*", regex.VERSION1)
_SPACELESS = regex.compile(f"[{SPACELESS}]", regex.VERSION1)
_UNSEEN = regex.compile(r"\p{Cf}")  # zero-width signs, soft hyphens, marks of direction
_STRAIGHT = str.maketrans({  # before NFKC, which takes an acute accent for a space with a mark
    **dict.fromkeys("‘’‚‛ʹʻʼʽ′‵`´ꞌ", "'"),
    **dict.fromkeys("“”„‟«»″‶〝〞", '"'),
    "\u200b": " "})


def straight(text: str) -> str:
    """The text with straight apostrophes and quotation marks, in Unicode's form NFKC.

    So full-width letters become plain ones, no-break and zero-width spaces become spaces, and other
    unseen signs are gone.

    >>> straight("I can’t “help”…")
    'I can\\'t "help"...'
    """
    return _UNSEEN.sub("", unicodedata.normalize("NFKC", text.translate(_STRAIGHT)))


def words(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation, emphasis and emoji.

    A word is letters, digits and their marks; where a script has no spaces, one sign. Of ASCII
    texts these are the words of rouge_score's own tokenizer.

    >>> words("**Don't** touch: naïve 茶碗!")
    ['don', 't', 'touch', 'naïve', '茶', '碗']
    """
    return _WORD.findall(straight(text).casefold())


def is_spaceless(word: str) -> bool:
    """Whether a word is one sign of a script without spaces.

    >>> is_spaceless("茶"), is_spaceless("tea")
    (True, False)
    """
    return bool(_SPACELESS.match(word))
