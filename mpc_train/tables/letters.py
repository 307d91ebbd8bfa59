"""Letters of European names that Unicode does not decompose, or that are also written as two.

`BASE` has the letters that have no decomposition but lose their mark: ø is o, ł is l. `WRITTEN_OUT`
has the letters that registers and passports without such letters spell with two: ü is ue, ß is ss.
It is the recommended transliteration of ICAO Doc 9303, part 3, section 6, table A, as far as that
uses two letters.
"""

import re

BASE = str.maketrans(
    {
        "ß": "ss",
        "ẞ": "SS",
        "æ": "ae",
        "Æ": "AE",
        "œ": "oe",
        "Œ": "OE",
        "ø": "o",
        "Ø": "O",
        "ł": "l",
        "Ł": "L",
        "đ": "d",
        "Đ": "D",
        "ð": "d",
        "Ð": "D",
        "þ": "th",
        "Þ": "TH",
        "ħ": "h",
        "Ħ": "H",
        "ı": "i",
        "ŋ": "n",
        "Ŋ": "N",
        "ŧ": "t",
        "Ŧ": "T",
    }
)

WRITTEN_OUT = {
    "ä": "ae",
    "å": "aa",
    "æ": "ae",
    "ö": "oe",
    "ø": "oe",
    "œ": "oe",
    "ü": "ue",
    "ß": "ss",
    "þ": "th",
    "ĳ": "ij",
    "Ä": "Ae",
    "Å": "Aa",
    "Æ": "Ae",
    "Ö": "Oe",
    "Ø": "Oe",
    "Œ": "Oe",
    "Ü": "Ue",
    "ẞ": "Ss",
    "Þ": "Th",
    "Ĳ": "Ij",
}

# A letter with an additional mark is another letter.
_LETTER = re.compile(f"[{''.join(WRITTEN_OUT)}](?![\u0300-\u036f])")


def written_out(text: str) -> str:
    """`text`, in composed form, with two letters for each in `WRITTEN_OUT`.

    The second letter for a capital is also a capital if the next letter is one, or at the end of
    the text the previous one: MÜLLER is MUELLER, Müller is Mueller, Über is Ueber.
    """

    def two(found: re.Match[str]) -> str:
        letters = WRITTEN_OUT[found[0]]
        beside = text[found.end() : found.end() + 1] or text[: found.start()][-1:]
        return letters.upper() if found[0].isupper() and beside.isupper() else letters

    return _LETTER.sub(two, text)
