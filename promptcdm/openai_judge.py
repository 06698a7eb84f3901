"""`openai:BASE_URL#MODEL`: a judge behind any server that speaks OpenAI's chat completions with pictures.

Choices are listed with letters, and the model is asked for one letter, at temperature 0. Where the server tells the
probabilities of the first token, P(choice) is the probability of its letter, each token counted once, over that of all
letters; else the words are matched to the choices. OPENAI_API_KEY is sent where it is set.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import string
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from promptcdm.answer import Answer, Asked, CannotAnswer, match_choice, most_likely
from promptcdm.errors import BadInput

_PROMPT = "letters 1"  # a new number with every change of what is asked and how it is read
_AT_ONCE = 8
_TRIES = 4
_SECONDS = 120.0
_REFUSED = {401, 403, 404}  # the same for every question
_LATER = {408, 409, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class OpenAIJudge:
    """One model of one server."""

    base: str  # such as http://localhost:8000/v1
    model: str
    key: str = ""
    wait: float = 1.0  # seconds before the second try; twice that before each further one
    blind: bool = False

    @property
    def name(self) -> str:
        """The server and its model."""
        return f"openai:{self.base}#{self.model}"

    @property
    def version(self) -> str:
        """That of the prompt; what a server has behind a model's name is not known."""
        return _PROMPT

    def answers(self, batch: Sequence[Asked]) -> list[Answer]:
        """One answer for each question, eight at a time.

        Raises CannotAnswer where the server has none, after four tries where it is busy, and BadInput where it
        refuses every question: no such model, a wrong key.
        """
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            return list(threads.map(self._one, batch))

    def answer(self, image: Image.Image, question: str, choices: Sequence[str]) -> Answer:
        """The answer to one question."""
        return self._one(Asked(image, question, tuple(choices)))

    def _one(self, asked: Asked) -> Answer:
        if len(asked.choices) > len(string.ascii_uppercase):
            raise CannotAnswer(f"{len(asked.choices)} choices; there are 26 letters")
        found = self.request("chat/completions", _body(self.model, asked))
        try:
            return read_reply(found["choices"][0], asked.choices)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise CannotAnswer(f"{self.base} answered what is no chat completion ({error!r})") from error

    def request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON that the server answers; GET without a body. Raises as `answers` does."""
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(f"{self.base}/{path}", data, headers)
        for tried in range(1, _TRIES + 1):
            reason = ""
            try:
                with urllib.request.urlopen(asked, timeout=_SECONDS) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}: {error.read(300).decode(errors='replace')}"
                if error.code in _REFUSED:
                    raise BadInput(
                        f"{self.base}/{path} refuses ({reason}); name a server, model and key"
                    ) from error
                if error.code not in _LATER:
                    raise CannotAnswer(f"{self.base} refuses this question ({reason})") from error
            except (OSError, ValueError) as error:
                reason = str(error)
            if tried < _TRIES:
                time.sleep(self.wait * 2 ** (tried - 1))
        raise CannotAnswer(f"{self.base} did not answer in {_TRIES} tries ({reason})")


def load_openai(where: str) -> OpenAIJudge:
    """The judge of BASE_URL#MODEL; without a model, the only one that the server has. Raises BadInput."""
    base, _, model = where.partition("#")
    if not re.match(r"https?://[^/]+", base):
        raise BadInput(f"judge 'openai:{where}' has no web address; give openai:http://HOST/v1#MODEL")
    judge = OpenAIJudge(base.rstrip("/"), model, os.environ.get("OPENAI_API_KEY", ""))
    if model:
        return judge
    try:
        listed = [str(each["id"]) for each in judge.request("models")["data"]]
    except (CannotAnswer, KeyError, TypeError) as error:
        raise BadInput(f"{base}/models names no model ({error}); give openai:{base}#MODEL") from error
    if len(listed) != 1:
        raise BadInput(f"{base} has {len(listed)} models ({', '.join(listed)}); give openai:{base}#MODEL")
    return replace(judge, model=listed[0])


def read_reply(reply: Any, choices: Sequence[str]) -> Answer:
    """What a reply means: by the probabilities of the letters where they are told, else by its words."""
    said = str(reply["message"]["content"] or "").strip()
    odds = _letter_odds(reply, len(choices))
    if odds is not None:
        return replace(most_likely(choices, odds), free_form=said)
    letter = re.match(r"\(?([A-Z])(?:[.):]|$)", said)
    place = string.ascii_uppercase.index(letter[1]) if letter else len(choices)
    return Answer(choices[place], None, said) if place < len(choices) else match_choice(said, choices)


def _letter_odds(reply: Any, count: int) -> list[float] | None:
    """P of each letter among the letters, from the first token's likeliest; None where none of them is a letter."""
    content = (reply.get("logprobs") or {}).get("content") or []
    told = content[0].get("top_logprobs") or [content[0]] if content else []
    tokens = {str(each["token"]): math.exp(float(each["logprob"])) for each in told}  # each token once
    letters = string.ascii_uppercase[:count]
    odds = [sum(p for token, p in tokens.items() if token.strip() == letter) for letter in letters]
    return [p / sum(odds) for p in odds] if sum(odds) > 0 else None


def _body(model: str, asked: Asked) -> dict[str, Any]:
    listed = "\n".join(f"{string.ascii_uppercase[n]}. {each}" for n, each in enumerate(asked.choices))
    words = f"{asked.question}\n{listed}\nAnswer with one letter."
    file = io.BytesIO()
    asked.image.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": words}]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 16,
        "logprobs": True,
        "top_logprobs": 20,
    }
