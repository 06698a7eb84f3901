"""Questions that a language model writes: what it is asked, how its words are read, and what of them is refused.

The format is the one that TIFA's model writes (Hu et al. 2023, arXiv 2303.11897); the instruction and the worked
examples are our own, so that a chat model and a bare one both know what is wanted:

    About apples (food):
    Q: what fruit is in the picture?
    Choices: apples, pears, lemons, grapes
    A: apples

A model errs, so that nothing is taken on trust: a question whose answer is none of its choices, or that is about
words which the caption lacks, is refused, counted and listed with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from promptcdm.answer import normal_words
from promptcdm.questions import Question, Text

PROMPT_VERSION = (
    "questions 1"  # a new number with every change of the prompt, of `read_questions` or of the checks
)
TYPES = (
    *("object", "animal/human", "attribute", "activity", "spatial", "location", "counting", "color"),
    *("food", "material", "shape", "other"),
)
_TYPE_NAMES = {name: name for name in TYPES} | {"animal": "animal/human", "human": "animal/human"}
_MOST_CHOICES = 20
_SHOWN = 200  # characters of the model's words in a refusal

_INSTRUCTION = f"""\
Write multiple-choice questions that check whether a picture shows what its description says.
Ask about every thing in the description: what it is, how many there are, its color and other attributes, what it
does, and where it is. Ask only about words of the description. The answer is one of the choices. The type is one of
{", ".join(TYPES)}. Keep exactly this format."""

_EXAMPLES = """\
Description: two red apples left of a sleeping dog
About apples (food):
Q: are there apples?
Choices: yes, no
A: yes
Q: what fruit is in the picture?
Choices: apples, pears, lemons, grapes
A: apples
About two (counting):
Q: how many apples are there?
Choices: 1, 2, 3, 4
A: 2
About red (color):
Q: what color are the apples?
Choices: red, green, yellow, brown
A: red
About dog (animal):
Q: what animal is in the picture?
Choices: dog, cat, horse, rabbit
A: dog
About sleeping (activity):
Q: what is the dog doing?
Choices: sleeping, running, eating, jumping
A: sleeping
About left of (spatial):
Q: are the apples left of the dog?
Choices: yes, no
A: yes

Description: a wooden table in a kitchen
About table (object):
Q: is there a table?
Choices: yes, no
A: yes
About wooden (material):
Q: what is the table made of?
Choices: wood, metal, glass, plastic
A: wood
About kitchen (location):
Q: where is the table?
Choices: kitchen, garden, office, street
A: kitchen
"""

_ABOUT = re.compile(r"about\s+(?P<element>.+?)\s*\((?P<kind>[^()]+)\)\s*:?\s*$", re.IGNORECASE)
_LINE = re.compile(r"(?P<what>q|question|choices|a|answer)\s*:\s*(?P<rest>.*)$", re.IGNORECASE)
_NEXT = re.compile(r"(description|caption)\s*:", re.IGNORECASE)
_MARKUP = re.compile(r"^[\s*#>`-]+|[\s*`]+$")  # what a chat model puts around lines


class Writes(Protocol):
    """Anything that goes on writing from a prompt."""

    @property
    def name(self) -> str:
        """How it is named in files."""

    @property
    def version(self) -> str:
        """Which weights it has."""

    def write(self, prompts: Sequence[str]) -> list[str]:
        """What it writes after each prompt, the prompt itself left out."""


@dataclass(frozen=True)
class Refusal:
    """Something that a model wrote and that is no question to be asked."""

    id: str
    caption: str
    wrote: str
    reason: str


class Draft(NamedTuple):
    """One question as the model wrote it, not checked yet."""

    element: str
    kind: str
    question: str
    choices: tuple[str, ...]
    answer: str


def prompt_of(caption: str) -> str:
    """What a model is asked for one caption."""
    return f"{_INSTRUCTION}\n\n{_EXAMPLES}\nDescription: {' '.join(caption.split())}\n"


def write_questions(
    texts: Sequence[Text], writer: Writes
) -> tuple[tuple[Question, ...], tuple[Refusal, ...]]:
    """Let a model write questions on each text, and keep those that pass every check.

    A text of which nothing is kept has a refusal of its own.
    """
    questions: list[Question] = []
    refusals: list[Refusal] = []
    written = writer.write([prompt_of(text.caption) for text in texts])
    for text, words in zip(texts, written, strict=True):
        kept, refused = checked_questions(text, words)
        questions += kept
        refusals += refused
        if not kept:
            shown = " ".join(words.split())[:_SHOWN]
            refusals.append(Refusal(text.id, text.caption, shown, "no question on this caption is left"))
    return tuple(questions), tuple(refusals)


def checked_questions(text: Text, written: str) -> tuple[list[Question], list[Refusal]]:
    """The questions in what a model wrote on one text, and what is refused with its reason."""
    kept: dict[str, Question] = {}
    refused = []
    for draft in read_questions(written):
        reason = _problem(draft, text.caption) or ("it is asked already" if draft.question in kept else "")
        if reason:
            shown = f"{draft.question} {' / '.join(draft.choices)}; {draft.answer}; about {draft.element}"
            refused.append(Refusal(text.id, text.caption, shown[:_SHOWN], reason))
            continue
        kind = _TYPE_NAMES[draft.kind]
        made = (draft.question, draft.choices, draft.answer, kind, draft.element)
        kept[draft.question] = Question(text.id, text.caption, *made)
    return list(kept.values()), refused


def read_questions(written: str) -> Iterator[Draft]:
    """Every question in a model's words, in lower case; another description ends them, other lines are passed over.

    What a question lacks is empty, so that the checks can name it.
    """
    element = kind = ""
    found: dict[str, str] = {}
    for raw in written.splitlines():
        line = _MARKUP.sub("", raw)
        if _NEXT.match(line):
            break
        about, part = _ABOUT.match(line), _LINE.match(line)
        if about or (part and part["what"][0].lower() == "q"):
            if found:
                yield _draft(element, kind, found)
            found = {}
        if about:
            element, kind = (" ".join(about[name].lower().split()) for name in ("element", "kind"))
        elif part:
            found[part["what"][0].lower()] = " ".join(part["rest"].lower().split())
    if found:
        yield _draft(element, kind, found)


def _draft(element: str, kind: str, found: dict[str, str]) -> Draft:
    listed = found.get("c", "")
    parts = listed.split(";") if ";" in listed else listed.split(",")
    choices = tuple(choice for part in parts if (choice := part.strip(" .")))
    return Draft(element, kind, found.get("q", ""), choices, found.get("a", "").strip(" ."))


def _problem(draft: Draft, caption: str) -> str:
    """Why a draft cannot be asked; empty where it can."""
    checks = (
        (len(draft.question.split()) < 2 or not draft.question.endswith("?"), "it is no question"),
        (not draft.answer, "it has no answer"),
        (len(draft.choices) < 2, "it has fewer than two choices"),
        (len(draft.choices) > _MOST_CHOICES, f"it has more than {_MOST_CHOICES} choices"),
        (len(set(map(normal_words, draft.choices))) < len(draft.choices), "two of its choices are the same"),
        (draft.answer not in draft.choices, "its answer is none of its choices"),
        (draft.kind not in _TYPE_NAMES, f"its type {draft.kind!r} is none of {', '.join(TYPES)}"),
        (not _within(draft.element, caption), "what it is about is not in the caption"),
    )
    return next((reason for wrong, reason in checks if wrong), "")


def _within(element: str, caption: str) -> bool:
    """True where the caption has the element's words in a row, apart from case, articles and plurals."""
    words = normal_words(element)
    return bool(words) and f" {words} " in f" {normal_words(caption)} "
