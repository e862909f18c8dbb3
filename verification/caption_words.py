"""Cut captions into words as the Penn Treebank does, in the form in which captions are scored.

Our own rules, made to give the words that pycocoevalcap gets from Stanford's PTBTokenizer (3.4.1,
lower case): contractions are split, brackets get names, lone punctuation goes. Addresses of pages
and mail, smileys and rare abbreviations are left to the general rules and may be cut elsewhere.
That tokenizer also looks from the end of one caption into the next; here every caption stands
alone, and its end counts as the end of a sentence.
"""

from __future__ import annotations

import re

_CHARACTERS = str.maketrans({
    "‘": "'", "’": "'", "“": '"', "”": '"', "—": "--", "–": "--", "…": "...",
    "£": "#", "€": "$", "¢": "cents",
})  # fmt: skip
_BRACKETS = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
}  # fmt: skip
# a full stop always belongs to these, …
_TITLES = (
    "mr|mrs|ms|dr|prof|st|ave|mt|ft|vs|dept|gen|col|sgt|lt|cpl|capt|maj|gov|sen|rep|pres|rev|hon"
)
# … and to these while the sentence goes on
_SHORTENED = (
    "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri|jr|sr|blvd|rd|inc"
    "|co|corp|ltd|bros|etc|univ|est|tel|ext|bldg|intl"
)
_STARTS = "A|An|And|At|He|I|In|It|On|She|The|Then|There|These|They|This|Those|Two|We|You"
_RULES = rf"""
    </?[a-z][^<>\s]*>                                   # a tag
  | [#@][a-z_]\w*                                       # a hashtag, a user
  | \b(?:{_TITLES})\.
  | \b(?:{_SHORTENED})\.(?=[^\w\s]|\s+(?-i:[^A-Z\s]))
  | \bno\.(?=\s?\d)
  | \bph\.d\.
  | \b[^\W\d_](?:\.[^\W\d_])+\b\.?                      # u.s., a.m., e.g.
  | \b[^\W\d_]\.(?=\s+\S)(?!\s+(?-i:{_STARTS})\b)       # an initial
  | (?-i:\b[A-Z]+(?:&[A-Z]+)+\b)                        # R&B, but not b&b
  | \b\d\d?:\d\d(?=[ap]m\b)
  | \b(?:can(?=not\b)|gon(?=na\b)|wan(?=na\b)|got(?=ta\b)|lem(?=me\b)|gim(?=me\b))
  | [^\W\d_]+?(?=n't\b) | n't\b
  | (?<=\w)'(?:s|m|re|ve|ll|d)\b
  | '\d\ds\b | 'n' | '(?:em|n)\b | '?t(?=(?<='t)(?:is|was)\b)
  | \b[odlc]'[^\W\d_]{{2,}} | \bma'am\b | \b[a-z]{{1,2}}'er\b | \by'(?=all\b)
  | (?:(?<!\w)(?:[+-]\.?|\.)(?=\d))?                    # -5, .5
    [^\W_]+(?:(?:[-_/.]|(?<=\d)[:,](?=\d))[^\W_]+)*     # one-way, on/off, 10:30, 2x4
  | \.\.\. | -+ | [?!]+
  | \S
"""
_TOKEN = re.compile(_RULES, re.IGNORECASE | re.VERBOSE)
# "?!" and "-lrb-" stay: pycocoevalcap's list has neither
_DROPPED = re.compile(r"[\"'`.,:;?!]|\.\.\.|-+")
_UNKNOWN = re.compile("[\U00010000-\U0010ffff]")  # emoji and such: the Java tokenizer loses them


def caption_words(text: str) -> list[str]:
    """The words of one caption, in lower case; none for an empty one."""
    plain = _UNKNOWN.sub("", text.translate(_CHARACTERS))
    found = (match.group().lower() for match in _TOKEN.finditer(plain))
    return [_BRACKETS.get(token, token) for token in found if not _DROPPED.fullmatch(token)]
