"""Names and other short texts that people give to things of theirs."""

import unicodedata

from iiot.errors import Invalid

LONGEST = 100


def check_name(value: str, loc: str = "name", longest: int = LONGEST) -> str:
    """The text, stripped at the ends, when it is 1 to `longest` characters without control characters; raises Invalid. `loc`: its field.

    Markup and every script of the world is only text: it is stored as it came and escaped where it is shown.
    """
    text = value.strip()
    message = None
    if not text:
        message = "must not be empty"
    elif len(text) > longest:
        message = f"at most {longest} characters"
    elif any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in text):
        message = "must not contain control characters or line breaks"
    if message:
        raise Invalid(f"The {loc.replace('_', ' ')} is not valid.", [{"loc": ["body", loc], "msg": message}])
    return text
