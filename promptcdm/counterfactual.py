"""For each question whose answer is yes, its counterpart whose answer is no: "is the dog blue?" beside "is it red?".

Published yes/no questions are all true of the caption, so that a judge that always says yes is always right. With
the counterparts it is right for half, and a judge is only ahead of it by looking. One word is changed, the first that
can be, in this order: a colour, a number, a relation, an opposite, a material, a shape, a thing. What takes its
place is not in the caption; that it is not in the picture either is an assumption, as of every wrong choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

from promptcdm import question_words as words
from promptcdm.caption_chunks import plural, singular
from promptcdm.question_rules import seeded
from promptcdm.questions import Question

KIND = "counterfactual"  # key of Question.extra; holds the question that it is the counterpart of
_PROPOSITION = "proposition_id"  # a counterpart stands on the same parents, and is nobody's parent
_WIDE = words.word_set(
    "human person people fruit food vegetables plant building object light glass orange mouse"
)
_KINDS = ("animal/human", "food", "object")  # a street is a road too, so places are not swapped


def counterfactual(question: Question, *, seed: int = 0) -> Question | None:
    """The counterpart; None for another kind of question, and where no word of it can be changed."""
    if question.answer != "yes" or sorted(question.choices) != ["no", "yes"]:
        return None
    for text in _changes(question, seed):
        extra = {key: value for key, value in question.extra.items() if key != _PROPOSITION}
        return replace(question, question=text, answer="no", extra={**extra, KIND: question.question})
    return None


def balanced(questions: Sequence[Question], *, seed: int = 0) -> tuple[Question, ...]:
    """Each question with its counterpart after it, so that "yes" is right for half of those with a yes.

    Questions with other choices, and those whose answer is no, stay as they are. A question whose answer is yes
    and that has no counterpart is left out.
    """
    found: list[Question] = []
    for question in questions:
        other = counterfactual(question, seed=seed)
        if other is not None:
            found += [question, other]
        elif question.answer != "yes":
            found.append(question)
    return tuple(found)


def _changes(question: Question, seed: int) -> Iterator[str]:
    """The question with one word changed, the best change first."""
    text = question.question
    asked = _words(text)
    told = asked | _words(question.caption)
    for old, new, own in _swaps():
        match = re.search(rf"\b{re.escape(old)}\b", text, re.IGNORECASE) if own <= asked else None
        if match is None:
            continue
        opposite = old in words.OPPOSITE_RELATIONS  # its words may be in the caption, its sense cannot
        free = [each for each in new if opposite or not told & _words(each)]
        if free:
            pick = seeded(seed, question.id, text).choice(free)
            yield _with_article(text[: match.start()], pick) + pick + text[match.end() :]


@cache
def _swaps() -> tuple[tuple[str, tuple[str, ...], frozenset[str]], ...]:
    """Each word that is changed, what may take its place, and its words in the singular; the best first."""
    near = {color: {color}.union(*(g for g in words.NEAR_COLORS if color in g)) for color in words.COLORS}
    numbers = [word for word, value in words.NUMBERS.items() if 2 <= value <= 6]
    groups: list[tuple[str, Sequence[str]]] = [
        *((color, [other for other in words.PLAIN_COLORS if other not in near[color]]) for color in near),
        *((word, numbers) for word, value in words.NUMBERS.items() if value > 1),
        *((phrase, [other]) for phrase, other in words.OPPOSITE_RELATIONS.items()),
        *((word, [other]) for word, other in words.OPPOSITES.items()),
        *((word, _other_materials(word)) for word in words.MATERIALS),
        *((shape, words.SHAPES) for shape in words.SHAPES),
        *_things(),
    ]
    return tuple(
        (old, tuple(each for each in new if each != old), frozenset(_words(old))) for old, new in groups
    )


def _things() -> Iterator[tuple[str, list[str]]]:
    """Each thing that is swapped, longest first, in the plural and the singular, with others of its kind."""
    nouns = [(noun, kind) for kind in _KINDS for noun in words.NOUNS[kind] if noun not in _WIDE]
    for noun, kind in sorted(nouns, key=lambda each: -len(each[0])):
        alike = [other for other, of in nouns if of == kind and other != noun and plural(other) != other]
        if noun in words.PEOPLE:
            alike = [other for other in alike if other not in words.PEOPLE]
        yield plural(noun), [plural(other) for other in alike]
        yield noun, alike


def _other_materials(word: str) -> list[str]:
    stuff = words.MATERIALS[word]
    return [name for name, other in words.MATERIALS.items() if other != stuff and name == other]


def _with_article(before: str, pick: str) -> str:
    """The words before, their article in the form that the picked word needs."""
    article = re.search(r"\b(an?) $", before, re.IGNORECASE)
    if not article:
        return before
    fitting = article[1][0] + ("n" if pick[0] in "aeiou" else "")
    return f"{before[: article.start()]}{fitting} "


def _words(text: str) -> set[str]:
    return {_singular(word) for word in re.findall(r"[a-z0-9-]+", text.lower())}


@cache
def _singular(word: str) -> str:
    return singular(word)
