"""The judge behind a chat server: against a small server of the standard library, on this machine alone."""

from __future__ import annotations

import base64
import io
import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from promptcdm.answer import Asked, CannotAnswer
from promptcdm.asking import ask
from promptcdm.errors import BadInput
from promptcdm.judgements import JudgementLog
from promptcdm.openai_judge import OpenAIJudge, load_openai
from promptcdm.questions import Question

STOCK = socket.getaddrinfo  # kept before the tests' refusal of every name takes its place


@pytest.fixture(autouse=True)
def this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 127.0.0.1 be looked up, and nothing else."""
    refuse = socket.getaddrinfo

    def only_here(host: Any, *rest: Any, **named: Any) -> Any:
        return (STOCK if host == "127.0.0.1" else refuse)(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)


Reply = Callable[[dict[str, Any]], tuple[int, Any]]
COLORS = ("red", "lime", "blue")


@contextmanager
def server(reply: Reply, models: tuple[str, ...] = ("tiny",)) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serves `reply` of each body; yields the base URL and the bodies with their headers."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": name} for name in models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, "key": self.headers["Authorization"], **body})
            self._send(*reply(body))

        def _send(self, code: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/v1", seen
        running.shutdown()
        thread.join()


def completion(said: str, odds: dict[str, float] | None = None) -> dict[str, Any]:
    reply: dict[str, Any] = {"message": {"role": "assistant", "content": said}}
    if odds is not None:
        top = [{"token": token, "logprob": math.log(p)} for token, p in odds.items()]
        reply["logprobs"] = {"content": [{"token": said, "logprob": 0.0, "top_logprobs": top}]}
    return {"choices": [reply]}


def looks(body: dict[str, Any]) -> tuple[int, Any]:
    """Answers the letter of the picture's colour, as a model that sees would."""
    picture, words = body["messages"][0]["content"]
    data = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    pixel = Image.open(io.BytesIO(data)).getpixel((0, 0))
    color = {(255, 0, 0): "red", (0, 255, 0): "lime", (0, 0, 255): "blue"}[pixel]  # type: ignore[index]
    (letter,) = (line[0] for line in words["text"].splitlines() if line.endswith(f". {color}"))
    return 200, completion(letter, {letter: 0.6, f" {letter}": 0.2, "The": 0.1, "Z": 0.1})


def asked(color: str = "red") -> Asked:
    return Asked(Image.new("RGB", (8, 8), color), "what color is it?", COLORS)


def test_it_sees_the_picture_and_gives_probabilities(tmp_path: Path) -> None:
    paths = {color: tmp_path / f"{color}.png" for color in COLORS}
    for color, path in paths.items():
        Image.new("RGB", (8, 8), color).save(path)
    rows = [Question(color, "", "what color is it?", COLORS, color) for color in COLORS]
    with server(looks) as (base, seen):
        judge = load_openai(f"{base}#tiny")
        judged = ask(rows, paths, judge, JudgementLog(tmp_path / "log.jsonl"))
        again = ask(rows, paths, judge, JudgementLog(tmp_path / "log.jsonl"))
    assert [verdict.score for verdict in judged.verdicts] == [1, 1, 1]
    assert [verdict.probability(verdict.question.answer) for verdict in judged.verdicts] == [1.0] * 3
    assert (len(seen), again.new, again.verdicts) == (3, 0, judged.verdicts)
    assert {(body["path"], body["model"], body["temperature"]) for body in seen} == {
        ("/v1/chat/completions", "tiny", 0)
    }
    assert judge.name == f"openai:{base}#tiny"


def test_spellings_of_a_letter_add_up_and_each_token_counts_once() -> None:
    odds = {"A": 0.3, " A": 0.1, "B": 0.4, "C": 0.1, "a": 0.05}
    with server(lambda _: (200, completion("B", odds))) as (base, _):
        found = OpenAIJudge(base, "tiny").answer(*asked())
    assert found.probabilities == pytest.approx((0.4 / 0.9, 0.4 / 0.9, 0.1 / 0.9))
    assert (found.choice, found.free_form) == ("red", "B")  # of equals the first


@pytest.mark.parametrize(
    ("said", "choice"),
    [
        ("B", "lime"),
        ("(B) lime", "lime"),
        ("C. because of the sky", "blue"),
        ("It is lime.", "lime"),
        ("Blue", "blue"),
        ("D", "D"),
        ("A tie", "A tie"),
        ("", ""),
    ],
)
def test_words_are_matched_where_no_probabilities_are_told(said: str, choice: str) -> None:
    with server(lambda _: (200, completion(said))) as (base, _):
        found = OpenAIJudge(base, "tiny").answer(*asked())
    assert (found.choice, found.probabilities, found.free_form) == (choice, None, said)


def test_a_busy_server_is_asked_again_and_a_dead_one_given_up() -> None:
    codes = iter([503, 429, 200])
    with server(lambda _: (next(codes), completion("A"))) as (base, seen):
        assert OpenAIJudge(base, "tiny", wait=0).answer(*asked()).choice == "red"
    assert len(seen) == 3
    with server(lambda _: (500, {})) as (base, seen), pytest.raises(CannotAnswer, match="in 4 tries"):
        OpenAIJudge(base, "tiny", wait=0).answer(*asked())
    assert len(seen) == 4
    with pytest.raises(CannotAnswer, match="did not answer"):
        OpenAIJudge("http://127.0.0.1:9/v1", "tiny", wait=0).answer(*asked())


def test_a_question_that_is_refused_is_one_failure_and_a_wrong_key_ends_the_run() -> None:
    policy = server(lambda _: (400, {"error": "content policy"}))
    with policy as (base, seen), pytest.raises(CannotAnswer, match="content policy"):
        OpenAIJudge(base, "tiny").answers([asked()])
    assert len(seen) == 1
    stranger = server(lambda _: (401, {"error": "no such key"}))
    with stranger as (base, _), pytest.raises(BadInput, match="no such key"):
        OpenAIJudge(base, "tiny").answers([asked(), asked("blue")])


@pytest.mark.parametrize("reply", [{}, {"choices": []}, {"choices": [{"text": "A"}]}, [1], None])
def test_a_reply_of_another_kind_is_a_failure(reply: Any) -> None:
    with server(lambda _: (200, reply)) as (base, _), pytest.raises(CannotAnswer, match="no chat completion"):
        OpenAIJudge(base, "tiny").answer(*asked())


def test_the_only_model_need_not_be_named_and_the_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "made up")
    with server(looks) as (base, seen):
        judge = load_openai(f"{base}/")
        assert judge.model == "tiny"
        judge.answer(*asked())
    assert seen[0]["key"] == "Bearer made up"
    assert "made up" not in judge.name + judge.version
    with server(looks, ("one", "two")) as (base, _), pytest.raises(BadInput, match=r"2 models \(one, two\)"):
        load_openai(base)


@pytest.mark.parametrize("where", ["", "localhost:8000", "file:///etc/hosts#tiny", "http://"])
def test_only_web_addresses_are_asked(where: str) -> None:
    with pytest.raises(BadInput, match="no web address"):
        load_openai(where)
