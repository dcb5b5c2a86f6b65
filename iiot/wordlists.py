"""Whether a password is among those that are tried first: lists of zxcvbn (MIT; 30,000 leaked passwords, 60,000 words and names), compared on normalised forms.

Lists alone catch little at twelve characters: people take a listed word and stretch it. So what is compared is the password without
what is put around a word: case, accents of width, "leet" digits, separators, numbers, repetition.
"""

import functools
import itertools
import re
import unicodedata

# NIST SP 800-63B section 5.1.1.2: words of the service itself count as common.
OWN_WORDS = ("iiot", "portal", "industrial", "mosquitto", "mqtt", "sensor", "gateway")
# Known to everybody, and not on lists that end at 30,000.
FAMOUS = ("correcthorsebatterystaple", "zaq12wsxcde3")
# What zxcvbn undoes too, one reading per character.
LEET = str.maketrans("013457@$!|+8", "oleastasiitb")
MIN_WORD = 2
_WORDS = re.compile(r"[^\W\d_]+")
_PARTS = re.compile(r"[^\W_]+")
# What stands before and after a word; `!2024` is no part of it, the `@` and `0` inside `p@ssw0rd` are.
_AROUND = re.compile(r"\A[\W\d_]+|[\W\d_]+\Z")


@functools.cache
def listed() -> frozenset[str]:
    """Everything on the lists, folded; read at the first use (0.1 s, about 9 MB)."""
    from zxcvbn.frequency_lists import FREQUENCY_LISTS

    words = {fold(word) for words in FREQUENCY_LISTS.values() for word in words}
    return frozenset(words.union(OWN_WORDS, FAMOUS))


def fold(password: str) -> str:
    """The form that is compared: one case, one width."""
    return unicodedata.normalize("NFKC", password).casefold()


def is_common(password: str) -> bool:
    """Whether a guesser with word lists and the usual rules comes to it within its first billion tries.

    Refused are listed entries, one or two of them in a row with numbers or signs around or between, repeated ones, and runs such as
    `123456789012` or `abcdefghijkl`.
    """
    folded = fold(password)
    if len(set(folded)) < 4 or _is_run(folded):
        return True
    return _is_made_of_two(folded) or _is_made_of_two(_AROUND.sub("", folded).translate(LEET))


def _is_run(text: str) -> bool:
    """`3456789`, `zyxwvu`, `1234567890123`: each character a fixed step from the one before, digits counted modulo ten."""
    steps = {(ord(b) - ord(a)) % 10 if (a + b).isdigit() else ord(b) - ord(a) for a, b in itertools.pairwise(text)}
    return len(steps) == 1


def _is_made_of_two(text: str) -> bool:
    """Whether at most two different entries of the lists are all that the text holds besides numbers and signs."""
    whole = "".join(_PARTS.findall(text))
    if whole in listed() or _repeated(whole) in listed():
        return True
    words = {_repeated(word) for word in _WORDS.findall(text)}
    if not words:
        # Digits and signs alone: a date or a telephone number is nothing that takes long to try.
        return len(whole) <= 16 and whole == text
    if len(words) <= 2 and all(word in listed() for word in words):
        return True
    return len(words) == 1 and _splits(next(iter(words)))


def _splits(word: str) -> bool:
    """Whether a word is two entries written together."""
    return any(word[:at] in listed() and word[at:] in listed() for at in range(MIN_WORD, len(word) - MIN_WORD + 1))


def _repeated(text: str) -> str:
    """`abcabc` → `abc`: the shortest part that makes up the text by repetition."""
    at = (text + text).find(text, 1)
    return text[:at]
