"""Visual question answering models of Hugging Face as judges, by hub id or folder, through transformers.

    BLIP    P(choice) = softmax over the choices of log p(choice tokens | picture, question)
    ViLT    softmax of the choices' logits among its fixed answers; where one is missing, its best answer
    others  that read picture and text and go on writing (LLaVA, PaliGemma, Qwen-VL, GIT, ...): as BLIP, after
            a prompt that lists the choices (choice_likelihood.py); with encoder and decoder, what it writes, matched
            to the choices

Weights are read from safetensors only, and no code of a repository is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BlipForQuestionAnswering,
    ViltForQuestionAnswering,
)

from promptcdm.answer import Answer, Asked, CannotAnswer, match_choice, most_likely, normal_words
from promptcdm.choice_likelihood import choice_scores
from promptcdm.errors import BadInput
from promptcdm.halves import in_halves
from promptcdm.hub_revision import revision

_NEW_TOKENS = 20
_QUESTIONS_AT_ONCE = 32  # read and sorted; what has one length or shape goes through a model together
_ROWS_AT_ONCE = 16
_PICTURE = "<image>"
_PROMPT = "prompt 2"  # a new number with every change of what a model is asked and how it is matched


@dataclass(frozen=True)
class HfJudge:
    """A model with its processor, and the way in which its kind answers."""

    name: str
    model: Any
    processor: Any
    device: str
    answer_part: Callable[[HfJudge, Sequence[Asked]], list[Answer]]
    version: str = _PROMPT
    blind: bool = False

    def answers(self, batch: Sequence[Asked]) -> list[Answer]:
        """One answer for each question, in order. Raises CannotAnswer where one alone needs too much memory."""
        found: list[Answer] = []
        alone = CannotAnswer("one question needs more memory than there is")
        with torch.inference_mode():
            for start in range(0, len(batch), _QUESTIONS_AT_ONCE):
                part = batch[start : start + _QUESTIONS_AT_ONCE]
                found += in_halves(partial(self.answer_part, self), part, alone)
        return found

    def answer(self, image: Image.Image, question: str, choices: Sequence[str]) -> Answer:
        """The answer to one question."""
        return self.answers([Asked(image, question, tuple(choices))])[0]


def load_hf(model: str, device: str = "cpu") -> HfJudge:
    """Load a model and its processor. Raises BadInput where they cannot be found or are of another kind."""
    try:
        config = AutoConfig.from_pretrained(model)
        loader, answer_part = _way_of(config)
        if loader is not None:
            processor = AutoProcessor.from_pretrained(model)
            dtype = torch.float32 if device == "cpu" else "auto"
            loaded = loader.from_pretrained(model, dtype=dtype, use_safetensors=True)
            version = f"{_PROMPT}, {revision(model, config)}"
            judge = loaded.eval().to(device)
            return HfJudge(f"hf:{model}", judge, processor, device, answer_part, version)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"judge 'hf:{model}' cannot be loaded ({reason}); give the folder or hub id of a model with its "
            "processor and safetensors weights"
        ) from error
    raise BadInput(
        f"judge 'hf:{model}' is a {config.model_type} model, which answers no questions about pictures; "
        "accepted are BLIP, ViLT and what transformers calls image-text-to-text models"
    )


def _way_of(config: Any) -> tuple[Any, Callable[[HfJudge, Sequence[Asked]], list[Answer]]]:
    """The class that loads a model of this kind, None where there is none, and how the kind answers."""
    if config.model_type == "blip":
        return BlipForQuestionAnswering, _blip
    if config.model_type == "vilt":
        return ViltForQuestionAnswering, _vilt
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText, _writing
    return None, _writing


def _blip(judge: HfJudge, batch: Sequence[Asked]) -> list[Answer]:
    """Read each picture once; let the decoder score every choice of every question.

    Questions of one length go together: transformers' BLIP gives its cross-attention no mask, so a padded
    question would be answered differently from the same one alone.
    """
    images = {id(asked.image): asked.image for asked in batch}
    pixels = judge.processor.image_processor(list(images.values()), return_tensors="pt")["pixel_values"]
    seen = judge.model.vision_model(pixel_values=pixels.to(judge.device, judge.model.dtype))[0]
    pictures = {key: seen[place] for place, key in enumerate(images)}
    questions = judge.processor.tokenizer([asked.question for asked in batch])["input_ids"]
    found: dict[int, Answer] = {}
    for length in {len(tokens) for tokens in questions}:
        rows = [row for row, tokens in enumerate(questions) if len(tokens) == length]
        read = judge.model.text_encoder(
            input_ids=torch.tensor([questions[row] for row in rows], device=judge.device),
            encoder_hidden_states=torch.stack([pictures[id(batch[row].image)] for row in rows]),
        )[0]
        choices = [batch[row].choices for row in rows]
        found.update(zip(rows, _blip_choices(judge, read, choices), strict=True))
    return [found[row] for row in range(len(batch))]


def _blip_choices(judge: HfJudge, read: Tensor, choices: Sequence[tuple[str, ...]]) -> list[Answer]:
    """Score the choices of each read question, (questions, length, width)."""
    counts = [len(own) for own in choices]
    owner = torch.repeat_interleave(torch.tensor(counts, device=judge.device))
    said = [choice for own in choices for choice in own]
    tokens = judge.processor.tokenizer(said, padding=True, return_tensors="pt").to(judge.device)
    ids = tokens["input_ids"].clone()
    ids[:, 0] = judge.model.decoder_start_token_id
    logits = judge.model.text_decoder(
        input_ids=ids, attention_mask=tokens["attention_mask"], encoder_hidden_states=read[owner]
    ).logits
    scores = _token_scores(logits[:, :-1], ids[:, 1:], tokens["attention_mask"][:, 1:])
    parts = torch.split(scores, counts)
    return [most_likely(own, part.softmax(0).tolist()) for own, part in zip(choices, parts, strict=True)]


def _vilt(judge: HfJudge, batch: Sequence[Asked]) -> list[Answer]:
    """Compare the choices among the model's fixed answers."""
    labels = {normal_words(label): int(index) for index, label in judge.model.config.id2label.items()}
    inputs = judge.processor(
        images=[asked.image for asked in batch],
        text=[asked.question for asked in batch],
        padding=True,
        truncation=True,
        return_tensors="pt",
    ).to(judge.device)
    found = []
    for asked, logits in zip(batch, judge.model(**inputs).logits, strict=True):
        places = [labels.get(normal_words(choice)) for choice in asked.choices]
        if None in places:
            found.append(match_choice(judge.model.config.id2label[int(logits.argmax())], asked.choices))
        else:
            found.append(most_likely(asked.choices, logits[places].float().softmax(0).tolist()))
    return found


def _writing(judge: HfJudge, batch: Sequence[Asked]) -> list[Answer]:
    """Let a writing model answer: by likelihood, or, with encoder and decoder, in its own words one at a time."""
    if getattr(judge.model.config.get_text_config(), "is_encoder_decoder", False):
        return [_written(judge, asked) for asked in batch]
    prompts = [_open_prompt(judge, asked) for asked in batch]
    choices = [
        [_choice_tokens(judge, choice, prompt["input_ids"]) for choice in asked.choices]
        for asked, prompt in zip(batch, prompts, strict=True)
    ]
    scores = choice_scores(judge.model, prompts, choices, _ROWS_AT_ONCE)
    return [
        most_likely(asked.choices, torch.tensor(own).softmax(0).tolist())
        for asked, own in zip(batch, scores, strict=True)
    ]


def _open_prompt(judge: HfJudge, asked: Asked) -> dict[str, Tensor]:
    """What the model reads of the prompt, without an end token, after which nothing would be written."""
    read = signature(judge.model.forward).parameters.keys() - {"labels"}
    inputs = {name: value for name, value in _prompt(judge, asked).items() if name in read}
    shape = inputs["input_ids"].shape
    end = judge.processor.tokenizer.eos_token_id, judge.processor.tokenizer.sep_token_id
    if int(inputs["input_ids"][0, -1]) not in end:
        return inputs
    return {name: value[:, :-1] if value.shape == shape else value for name, value in inputs.items()}


def _choice_tokens(judge: HfJudge, choice: str, prompt: Tensor) -> tuple[int, ...]:
    """The choice as the model would write it after the prompt (1, L): on a new line it begins without a space."""
    tokenizer = judge.processor.tokenizer
    begun = tokenizer.decode(prompt[0, -1:].tolist())
    stem, space = ("\n", "") if begun and not begun.strip() else ("Answer:", " ")
    before, after = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (stem, f"{stem}{space}{choice}")
    )
    if after[: len(before)] == before and len(after) > len(before):
        return tuple(after[len(before) :])
    return tuple(tokenizer(f"{space}{choice}", add_special_tokens=False)["input_ids"])


def _written(judge: HfJudge, asked: Asked) -> Answer:
    """Match what the model writes to the choices."""
    ids = judge.model.generate(**_prompt(judge, asked), max_new_tokens=_NEW_TOKENS, do_sample=False)
    return match_choice(judge.processor.batch_decode(ids, skip_special_tokens=True)[0], asked.choices)


def _prompt(judge: HfJudge, asked: Asked) -> Any:
    """Picture, question and choices as the model's inputs, in its chat template where it has one."""
    words = f"{asked.question} Answer with one of: {', '.join(asked.choices)}."
    if getattr(judge.processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": words}]
        turns = [{"role": "user", "content": content}]
        text = judge.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    else:
        told = (
            _PICTURE if judge.model.config.model_type == "paligemma" else ""
        )  # the others' processors place it
        text = f"{told}Question: {words} Answer:"
    return judge.processor(images=asked.image, text=text, return_tensors="pt").to(judge.device)


def _token_scores(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Sum over the tokens of log p(token): (n, length, vocabulary), (n, length), (n, length) -> (n,)."""
    chosen = logits.float().log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return (chosen * mask).sum(1)
