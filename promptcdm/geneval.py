"""GenEval's prompts (Ghosh et al. 2023, arXiv 2310.11513) as questions, and its score over the answers.

A line of `evaluation_metadata.jsonl` is {"tag", "include": [{"class", "count", "color", "position"}], "prompt"}.
GenEval itself looks with an object detector. Here each thing that it looks for is a question, which stands on the
questions whether its objects are there, so that DSG's gate applies:

    is there a dog?   how many dogs are there?   what color is the dog?   is the dog left of the bench?

A picture is right where every answer is; the score is the mean, over the six tags, of the share of right pictures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from promptcdm.caption_chunks import plural
from promptcdm.dsg import proposition
from promptcdm.errors import BadQuestions
from promptcdm.question_rules import is_there
from promptcdm.questions import Question
from promptcdm.verdict import Value, scored_by

TAG = "tag"  # key of Question.extra
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
MOST = 5  # objects in a question of number: GenEval asks for up to four, and refuses one more


def load_geneval(path: Path) -> tuple[Question, ...]:
    """Read the metadata; the id of a prompt is the name of its folder of pictures, 00000 for the first line.

    Raises BadQuestions, naming file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadQuestions(
            f"{path}: cannot be read ({error}); give GenEval's metadata, JSON Lines"
        ) from error
    found: list[Question] = []
    for number, line in enumerate(line for line in lines if line.strip()):
        where = f"{path}, line {number + 1}"
        try:
            found.extend(_questions(json.loads(line), f"{number:05d}", where))
        except BadQuestions:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise BadQuestions(f"{where}: is no metadata of GenEval ({error!r})") from error
    if not found:
        raise BadQuestions(f"{path}: is empty; give GenEval's metadata, JSON Lines")
    return tuple(found)


def geneval(values: Sequence[Value]) -> dict[str, float]:
    """The share of right pictures by tag, and their mean under "all"."""
    tags = {question.id: str(question.extra[TAG]) for question, _ in values}
    by_tag: dict[str, list[float]] = {}
    for id, least in scored_by(values, min).by_caption.items():
        by_tag.setdefault(tags[id], []).append(least)
    shares = {tag: sum(own) / len(own) for tag, own in by_tag.items()}
    return {**shares, "all": sum(shares.values()) / len(shares)}


def _questions(row: Mapping[str, Any], id: str, where: str) -> list[Question]:
    made: list[Question] = []

    def add(question: str, choices: tuple[str, ...], answer: str, kind: str, parents: str = "0") -> int:
        if answer not in choices:
            raise BadQuestions(f"{where}: {answer!r} is none of {', '.join(choices)}")
        one = Question(id, str(row["prompt"]), question, choices, answer, kind, extra={TAG: row["tag"]})
        made.append(proposition(one, len(made) + 1, parents))
        return len(made)

    places: list[int] = []
    for thing in row["include"]:
        name, count = str(thing["class"]), int(thing["count"])
        place = add(is_there(name, count > 1), ("yes", "no"), "yes", "object")
        places.append(place)
        if row["tag"] == "counting":
            choices = tuple(str(n) for n in range(1, MOST + 1))
            add(f"how many {plural(name)} are there?", choices, str(count), "counting", str(place))
        if "color" in thing:
            add(f"what color is the {name}?", COLORS, str(thing["color"]), "color", str(place))
        if "position" in thing:
            relation, other = thing["position"]
            if relation not in RELATIONS:
                raise BadQuestions(f"{where}: {relation!r} is none of {', '.join(RELATIONS)}")
            second = row["include"][other]["class"]
            parents = f"{place}, {places[other]}"
            add(f"is the {name} {relation} the {second}?", ("yes", "no"), "yes", "spatial", parents)
    return [replace(question, element=str(row["prompt"])) for question in made]
