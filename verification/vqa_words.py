"""The word tables of VQA's answer normalization."""

from __future__ import annotations

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
PUNCTUATION = (
    ";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`",
    ",", "?", "!",
)  # fmt: skip

_NOT = (
    "ain", "aren", "can", "couldn", "didn", "doesn", "don", "hadn", "hasn", "haven", "isn",
    "mightn", "mustn", "needn", "oughtn", "shan", "shouldn", "wasn", "weren", "won", "wouldn",
)  # fmt: skip
_HAVE = ("could", "might", "must", "should", "would", "not", "they", "we", "who", "you")
_ARE = ("they", "you", "what", "who")
_WILL = ("he", "it", "she", "they", "what", "who", "you", "somebody", "someone")
_IS = (
    "he", "here", "how", "let", "she", "that", "there", "what", "when", "where", "who", "why",
    "it", "somebody", "someone", "something",
)  # fmt: skip
_WOULD = (
    "he", "how", "it", "she", "that", "there", "they", "who", "you", "somebody", "someone",
    "something",
)  # fmt: skip


def _contractions() -> dict[str, str]:
    """Words as people type them without the apostrophe -> with it."""
    found = {stem + "t": stem + "'t" for stem in _NOT}
    for stems, end in ((_HAVE, "ve"), (_ARE, "re"), (_WILL, "ll"), (_IS, "s"), (_WOULD, "d")):
        found |= {stem + end: f"{stem}'{end}" for stem in stems}
    found |= {"yall": "y'all", "maam": "ma'am", "oclock": "o'clock"}
    # words of their own that only look like a contraction without its apostrophe; those with "I"
    # are capital in the published table and looked up in lower case, so they never apply
    for word in ("its", "hell", "shell", "shed"):
        found.pop(word, None)
    return found


CONTRACTIONS = _contractions()
