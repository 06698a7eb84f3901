"""Noun phrases and relations of a caption, by a closed vocabulary and a few rules; no model, no grammar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from promptcdm import question_words as words

RELATION_NAMES = tuple(dict.fromkeys(name for _, name in words.RELATION_PHRASES))
_TOKEN = re.compile(r"[a-z0-9]+(?:['-][a-z0-9]+)*|[.,;:!?()]")
_IRREGULAR = {
    **{"men": "man", "women": "woman", "children": "child", "people": "person", "mice": "mouse"},
    **{"geese": "goose", "feet": "foot", "teeth": "tooth", "leaves": "leaf", "knives": "knife"},
    **{"wolves": "wolf", "scarves": "scarf", "shelves": "shelf", "loaves": "loaf", "elves": "elf"},
    **{"buses": "bus", "cactuses": "cactus", "octopuses": "octopus", "walruses": "walrus", "axes": "axe"},
    **{"hippopotamuses": "hippopotamus", "shoes": "shoe", "toes": "toe", "canoes": "canoe", "oboes": "oboe"},
}
_PLURALS = {one: many for many, one in _IRREGULAR.items()}
# Words that end in s and name one thing, or that have no singular.
_SAME = words.word_set(
    """
    glasses sunglasses pants jeans scissors skis grass glass bus dress cactus octopus hippopotamus tennis
    sheep fish deer noodles grapes fries vegetables pancakes jigsaw lens kiss cross compass mattress moss
    class christmas
    """
)
_ARTICLES = frozenset({"a", "an", "the", "another", "his", "her", "their", "its"})
_LONGEST_FALLBACK = 3  # words of a noun phrase that no list knows


@dataclass(frozen=True)
class Chunk:
    """One noun phrase."""

    noun: str  # singular where it is counted
    words: str  # as the caption says it
    number: int | None = None  # None where the caption does not say
    many: bool = False  # two or more, or said in the plural
    modifiers: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()  # what follows it, such as "eating" or "wearing a hat"
    start: int = 0  # first and one past the last token, in the caption
    stop: int = 0


@dataclass(frozen=True)
class Relation:
    """`first` is `name` `second`, such as left of."""

    first: Chunk
    name: str
    second: Chunk


class Chunker:
    """Reads captions with the nouns it was given and the built-in everyday ones."""

    def __init__(self, nouns: Sequence[str] = ()) -> None:
        everyday = [noun for names in words.NOUNS.values() for noun in names]
        self._nouns = {tuple(_tokens(noun)): noun for noun in (*everyday, *nouns)}
        self._longest = max(len(noun) for noun in self._nouns)
        self._relations = [(tuple(phrase.split()), name) for phrase, name in words.RELATION_PHRASES]

    def read(self, caption: str) -> tuple[tuple[Chunk, ...], tuple[Relation, ...]]:
        """The caption's noun phrases in order, and the relations between neighbours."""
        tokens = _tokens(caption)
        chunks: list[Chunk] = []
        place = 0
        while place < len(tokens):
            chunk = self._chunk(tokens, place)
            if chunk is None:
                place += 1
                continue
            place = chunk.stop
            if chunk.noun not in words.ABOUT_PICTURE:
                chunks.append(replace(chunk, actions=self._actions(tokens, chunk.stop)))
        return tuple(chunks), self._between(tokens, chunks)

    def _chunk(self, tokens: Sequence[str], start: int) -> Chunk | None:
        """The noun phrase that starts at this token: [article] [number] [modifier]... noun."""
        place, number, modifiers = start, None, []
        article = tokens[place] in _ARTICLES
        if article:
            place += 1
        if place < len(tokens) and _number(tokens[place]) is not None:
            number = _number(tokens[place])
            place += 1
        while place < len(tokens) and self._modifies(tokens, place):
            modifiers.append(tokens[place])
            place += 1
        length = self._known(tokens, place) or 0
        if not length and (article or number is not None or modifiers):
            length = _fallback_length(tokens, place)
        if not length:
            return None
        stop = place + length
        noun = self._name(tokens[place:stop], number)
        said = " ".join(tokens[start + article : stop])
        kept = tuple(word for word in modifiers if word not in words.OTHER_MODIFIERS)
        many = number > 1 if number is not None else singular(tokens[stop - 1]) != tokens[stop - 1]
        return Chunk(noun, said, number, many, kept, (), start, stop)

    def _actions(self, tokens: Sequence[str], place: int) -> tuple[str, ...]:
        """The participle from this token on, alone and with the noun phrase after it."""
        while place < len(tokens) and tokens[place] in {"is", "are"}:
            place += 1
        if place >= len(tokens) or not _is_participle(tokens[place]):
            return ()
        goal = place + 1
        while goal < len(tokens) and tokens[goal] in words.PREPOSITIONS:
            goal += 1
        with_object = self._chunk(tokens, goal) if goal < len(tokens) else None
        if with_object is None:
            return (tokens[place],)
        longer = " ".join(tokens[place : with_object.stop])
        return (longer,) if goal == place + 1 else (tokens[place], longer)

    def _modifies(self, tokens: Sequence[str], place: int) -> bool:
        """True of a modifier; what is a noun as well, such as orange, modifies where a noun follows."""
        return _is_modifier(tokens[place]) and (
            not self._known(tokens, place)
            or (self._known(tokens, place) == 1 and bool(self._known(tokens, place + 1)))
        )

    def _known(self, tokens: Sequence[str], place: int) -> int:
        """How many tokens from here name a known noun, in singular or plural; 0 for none."""
        for length in range(min(self._longest, len(tokens) - place), 0, -1):
            phrase = tuple(tokens[place : place + length])
            if phrase in self._nouns or _last_singular(phrase) in self._nouns:
                return length
        return 0

    def _name(self, phrase: Sequence[str], number: int | None) -> str:
        as_said, as_one = tuple(phrase), _last_singular(tuple(phrase))
        if as_one in self._nouns:
            return self._nouns[as_one]
        if as_said in self._nouns:
            return self._nouns[as_said]
        return " ".join(as_one if number is not None else as_said)

    def _between(self, tokens: Sequence[str], chunks: Sequence[Chunk]) -> tuple[Relation, ...]:
        """Relations said by the words between two neighbours, after an optional verb."""
        found = []
        for first, second in pairwise(chunks):
            gap = list(tokens[first.stop : second.start])
            while gap and (gap[0] in {"is", "are", "that", "which"} or _is_participle(gap[0])):
                gap.pop(0)
            name = dict(self._relations).get(tuple(gap)) or _at_ends(
                gap, tokens[second.stop : second.stop + 3]
            )
            if name is not None:
                found.append(Relation(first, name, second))
        return tuple(found)


def _at_ends(gap: Sequence[str], after: Sequence[str]) -> str | None:
    """The relation in "a cat on the left and a dog on the right", or at the top and at the bottom."""
    ends = {"left": ("right", "left of"), "right": ("left", "right of")}
    ends |= {"top": ("bottom", "above"), "bottom": ("top", "below")}
    if len(gap) == 4 and gap[0] in {"on", "at"} and (gap[1], gap[3]) == ("the", "and") and gap[2] in ends:
        other, name = ends[gap[2]]
        if list(after) == [gap[0], "the", other]:
            return name
    return None


def singular(word: str) -> str:
    """One of it: "cats" is "cat", "glass" stays."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in _SAME or not word.endswith("s") or word.endswith("ss") or len(word) < 4:
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses", "oes")):
        return word[:-2]
    return word[:-1]


def plural(noun: str) -> str:
    """Several of it; of a noun of several words the last one changes."""
    *before, word = noun.split(" ")
    if word in _PLURALS:
        many = _PLURALS[word]
    elif word in _SAME and word not in {"glass", "dress"}:
        many = word
    elif word.endswith("y") and word[-2:-1] not in set("aeiou"):
        many = word[:-1] + "ies"
    elif word.endswith(("ch", "sh", "x", "ss", "z")) or word in {"potato", "tomato", "volcano"}:
        many = word + "es"
    else:
        many = word if word.endswith("s") else word + "s"
    return " ".join([*before, many])


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text.lower().replace("\u2019", "'"))


def _last_singular(phrase: tuple[str, ...]) -> tuple[str, ...]:
    return (*phrase[:-1], singular(phrase[-1])) if phrase else phrase


def _number(token: str) -> int | None:
    if token.isdigit():
        return int(token) if 0 < int(token) <= 99 else None
    return words.NUMBERS.get(token)


def _is_modifier(token: str) -> bool:
    lists = (words.COLORS, words.MATERIALS, words.SHAPES, words.OPPOSITES, words.OTHER_MODIFIERS)
    return any(token in known for known in lists)


def _is_participle(token: str) -> bool:
    return token.endswith("ing") and len(token) > 4 and token not in words.NOT_VERBS | words.STOPS


def _fallback_length(tokens: Sequence[str], place: int) -> int:
    length = 0
    while length < _LONGEST_FALLBACK and place + length < len(tokens):
        token = tokens[place + length]
        ends = token in words.STOPS or token in words.COMMON_VERBS or not token[0].isalpha()
        if ends or (length and _is_participle(token)):
            break
        length += 1
    return length
