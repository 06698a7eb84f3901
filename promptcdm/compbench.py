"""T2I-CompBench's prompts (Huang et al. 2023, arXiv 2307.06350), one a line, and its BLIP-VQA score.

    score(caption) = product over noun phrases of P("yes" | picture, "PHRASE?")

The published score finds the phrases with spaCy, at most eight; here the rules of `caption_chunks` find them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from promptcdm.caption_chunks import Chunker
from promptcdm.errors import BadQuestions
from promptcdm.questions import Question, Text
from promptcdm.verdict import Scored, Value, scored_by

MOST_PHRASES = 8


def load_compbench(path: Path) -> tuple[Text, ...]:
    """Read a file of prompts; the id is the file's name and the line, from 0: color_val_0. Raises BadQuestions."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadQuestions(
            f"{path}: cannot be read ({error}); give a text file, one prompt a line"
        ) from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise BadQuestions(f"{path}: is empty; give a text file, one prompt a line")
    return tuple(Text(f"{path.stem}_{number}", prompt) for number, prompt in enumerate(prompts))


def blip_vqa_questions(texts: Iterable[Text]) -> tuple[Question, ...]:
    """A question for each noun phrase; the whole text where none is found."""
    chunker, found = Chunker(), []
    for text in texts:
        chunks, _ = chunker.read(text.caption)
        phrases = list(
            dict.fromkeys(_with_article(chunk.words, chunk.number, chunk.many) for chunk in chunks)
        )
        for phrase in phrases[:MOST_PHRASES] or [text.caption.rstrip(".")]:
            found.append(Question(text.id, text.caption, f"{phrase}?", ("yes", "no"), "yes", "other", phrase))
    return tuple(found)


def blip_vqa(values: Sequence[Value]) -> Scored:
    """The product of the probabilities of each caption."""
    return scored_by(values, math.prod)


def _with_article(words: str, number: int | None, many: bool) -> str:
    if many or number is not None:
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
