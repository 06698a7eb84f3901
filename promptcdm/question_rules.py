"""Questions from captions by rule, offline, with no model.

A chunker finds the noun phrases of a caption (a closed vocabulary, then whatever follows an article) with
their colours, numbers and other attributes, and the relations between neighbours; each finding becomes one or
more multiple-choice questions. Distractors and the order of choices come from a seed, the caption's id and
the question.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence

from promptcdm import question_words as words
from promptcdm.caption_chunks import Chunk, Chunker, Relation, plural, singular
from promptcdm.questions import Question, Text

OBJECT_CHOICES = 20
_YES_NO = ("yes", "no")


def generate_questions(
    texts: Iterable[Text], nouns: Sequence[str] = (), *, seed: int = 0, negatives: bool = True
) -> tuple[Question, ...]:
    """Make questions on each text.

    `nouns` are the objects that captions may name (singular); with 20 of them or more, object questions have
    20 choices, else 4 out of built-in everyday nouns. With `negatives` each yes/no question about an object,
    a colour, a number or a position has a counterpart whose answer is "no", so that always saying "yes" is
    right for half of them.
    """
    chunker = Chunker(nouns)
    writer = _Writer(nouns, seed, negatives)
    found: list[Question] = []
    for text in texts:
        chunks, relations = chunker.read(text.caption)
        found.extend(writer.questions(text, chunks, relations))
    return tuple(found)


class _Writer:
    """Turns what the chunker found in one caption into questions, each asked once."""

    def __init__(self, nouns: Sequence[str], seed: int, negatives: bool) -> None:
        everyday = {noun: kind for kind, names in words.NOUNS.items() for noun in names}
        self._kinds = everyday
        self._pool = tuple(nouns) if len(nouns) >= OBJECT_CHOICES else tuple(everyday)
        self._choices = OBJECT_CHOICES if len(nouns) >= OBJECT_CHOICES else 4
        self._seed = seed
        self._negatives = negatives

    def questions(self, text: Text, chunks: Sequence[Chunk], relations: Sequence[Relation]) -> list[Question]:
        self._text = text
        self._made: dict[str, Question] = {}
        named = {chunk.noun for chunk in chunks}
        for chunk in chunks:
            self._presence(chunk, named)
            self._count(chunk, sum(other.noun == chunk.noun for other in chunks))
            self._attributes(chunk, chunks)
        self._objects(chunks, named)
        for relation in relations:
            self._relation(relation)
        return list(self._made.values())

    def _presence(self, chunk: Chunk, named: set[str]) -> None:
        kind = self._kind(chunk.noun)
        self._yes(is_there(chunk.noun, chunk.many), kind, chunk.words)
        if self._negatives:
            absent = self._distractors(named, 1, f"absent {chunk.noun}", self._kinds.get(chunk.noun))
            for noun in absent:
                self._no(is_there(noun, False), kind, chunk.words)

    def _objects(self, chunks: Sequence[Chunk], named: set[str]) -> None:
        nouns = list(
            dict.fromkeys(chunk.noun for chunk in chunks if chunk.noun not in words.NOUNS["location"])
        )
        for index, noun in enumerate(nouns):
            other = nouns[(index + 1) % len(nouns)]
            question = (
                f"what is in the picture with the {other}?" if other != noun else "what is in the picture?"
            )
            kind = self._kinds.get(noun) if self._choices == 4 else None
            wrong = self._distractors(named, self._choices - 1, question, kind)
            self._choice(question, noun, wrong, self._kind(noun), noun)

    def _count(self, chunk: Chunk, times: int) -> None:
        if chunk.number is None or times > 1:
            return
        many = plural(chunk.noun)
        first = max(1, chunk.number - 2) if chunk.number > 4 else 1
        choices = tuple(str(first + step) for step in range(4))
        self._add(f"how many {many} are there?", choices, str(chunk.number), "counting", chunk.words)
        if chunk.number > 1:
            self._yes(f"are there {_number_word(chunk.number)} {many}?", "counting", chunk.words)
            if self._negatives:
                other = [n for n in range(2, 6) if n != chunk.number]
                wrong = self._random(f"count {many}").choice(other)
                self._no(f"are there {_number_word(wrong)} {many}?", "counting", chunk.words)

    def _attributes(self, chunk: Chunk, chunks: Sequence[Chunk]) -> None:
        """Colours, materials, shapes and opposites; only where the noun names one thing of the caption."""
        if sum(other.noun == chunk.noun for other in chunks) > 1:
            return
        name = plural(chunk.noun) if chunk.many else chunk.noun
        verb = "are" if chunk.many else "is"
        for word in chunk.modifiers:
            about = f"{verb} the {name} {{}}?"
            if word in words.COLORS:
                wrong = self._sample(_other_colors(word), 3, f"{name} {word}")
                self._choice(f"what color {verb} the {name}?", word, wrong, "color", word)
                self._yes(about.format(word), "color", word)
                if self._negatives:
                    self._no(about.format(wrong[0]), "color", word)
            elif word in words.MATERIALS:
                stuff = words.MATERIALS[word]
                others = sorted(set(words.MATERIALS.values()) - {stuff})
                wrong = self._sample(others, 3, f"{name} {word}")
                self._choice(f"what {verb} the {name} made of?", stuff, wrong, "material", word)
                self._yes(f"{verb} the {name} made of {stuff}?", "material", word)
            elif word in words.SHAPES:
                wrong = self._sample([shape for shape in words.SHAPES if shape != word], 3, f"{name} {word}")
                self._choice(f"what shape {verb} the {name}?", word, wrong, "shape", word)
                self._yes(about.format(word), "shape", word)
            else:
                self._yes(about.format(word), "attribute", word)
                if word in words.OPPOSITES:
                    wrong = [words.OPPOSITES[word]]
                    self._choice(f"{verb} the {name} {word} or {wrong[0]}?", word, wrong, "attribute", word)
        for action in chunk.actions:
            self._yes(f"{verb} the {name} {action}?", "activity", action)

    def _relation(self, relation: Relation) -> None:
        first, second, name = relation.first.noun, relation.second.noun, relation.name
        if first == second:
            return
        verb = "are" if relation.first.many else "is"
        things = plural(first) if relation.first.many else first
        where = f"{verb} the {things} {{}} the {second}?"
        self._yes(where.format(name), "spatial", name)
        opposite = words.OPPOSITE_RELATIONS.get(name)
        if opposite and self._negatives:
            self._no(where.format(opposite), "spatial", name)
        if name in words.PLANE_RELATIONS:
            wrong = [f"{other} the {second}" for other in words.PLANE_RELATIONS if other != name]
            self._choice(f"where {verb} the {things}?", f"{name} the {second}", wrong, "spatial", name)

    def _yes(self, question: str, kind: str, element: str) -> None:
        self._add(question, _YES_NO, "yes", kind, element)

    def _no(self, question: str, kind: str, element: str) -> None:
        self._add(question, _YES_NO, "no", kind, element)

    def _choice(self, question: str, answer: str, wrong: Sequence[str], kind: str, element: str) -> None:
        choices = [answer, *wrong]
        self._random(f"order {question}").shuffle(choices)
        self._add(question, tuple(choices), answer, kind, element)

    def _add(self, question: str, choices: tuple[str, ...], answer: str, kind: str, element: str) -> None:
        made = Question(self._text.id, self._text.caption, question, choices, answer, kind, element)
        self._made.setdefault(question, made)

    def _kind(self, noun: str) -> str:
        return self._kinds.get(noun, "object")

    def _distractors(self, named: set[str], count: int, about: str, kind: str | None) -> list[str]:
        """Nouns that share no word with the caption's, of the same kind where one is given."""
        taken = {singular(word) for noun in named for word in noun.split()}
        if taken & words.PEOPLE:
            taken |= words.PEOPLE
        free = [noun for noun in self._pool if not taken & {singular(word) for word in noun.split()}]
        alike = [noun for noun in free if kind is not None and self._kinds.get(noun) == kind]
        return self._sample(alike if len(alike) >= count else free, count, about)

    def _sample(self, pool: Sequence[str], count: int, about: str) -> list[str]:
        return self._random(about).sample(list(pool), min(count, len(pool)))

    def _random(self, about: str) -> random.Random:
        return seeded(self._seed, self._text.id, about)


def seeded(*parts: object) -> random.Random:
    """A generator that depends on the parts alone, the same in every process."""
    key = "\x1f".join(str(part) for part in parts)
    return random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))


def is_there(noun: str, many: bool) -> str:
    """The yes/no question whether a thing, or more of them than one, are in the picture."""
    if many or (plural(noun) == noun and noun.endswith("s")):
        return f"are there {plural(noun)}?"
    if noun.split()[-1] in words.MASS:
        return f"is there {noun}?"
    return f"is there {'an' if noun[0] in 'aeiou' else 'a'} {noun}?"


def _number_word(number: int) -> str:
    return next((word for word, value in words.NUMBERS.items() if value == number), str(number))


def _other_colors(color: str) -> list[str]:
    near = {color}.union(*(group for group in words.NEAR_COLORS if color in group))
    return [other for other in words.PLAIN_COLORS if other not in near]
