"""Judges that go on writing: PaliGemma, Qwen-VL and GIT, tiny and random, against a forward of the whole text."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_judge import tiny_git

from promptcdm import hf_judge
from promptcdm.answer import Asked
from promptcdm.choice_likelihood import beginnings
from promptcdm.hf_judge import HfJudge, load_hf

COLOURS = ("red", "dark blue", "dark green", "red cat", "r")


def tokenizer_of(special: list[str], **options: Any) -> Any:
    """A token a byte, beside the special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(known)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **options)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer


SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}


def save(model: Any, processor: Any, folder: Path) -> Path:
    # Random weights of the usual size give nearly the same score to everything.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tiny_paligemma(folder: Path) -> Path:
    from transformers import (
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
    )

    ends = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    pixels = SiglipImageProcessor(size={"height": 32, "width": 32})
    pixels.image_seq_length = 4
    processor = PaliGemmaProcessor(pixels, tokenizer_of(list(ends.values()), **ends))
    count = len(processor.tokenizer)
    vision = {**SIZES, "num_hidden_layers": 1, "image_size": 32, "patch_size": 16, "projection_dim": 16}
    text = {**SIZES, "model_type": "gemma", "num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 8}
    ids = {"vocab_size": count, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=text | ids,
        image_token_index=processor.image_token_id,
        projection_dim=16,
        vocab_size=count,
    )
    torch.manual_seed(1)
    return save(PaliGemmaForConditionalGeneration(config), processor, folder)


def tiny_qwen(folder: Path) -> Path:
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    special += ["<|image_pad|>", "<|video_pad|>"]
    tokenizer = tokenizer_of(
        special,
        pad_token=special[0],
        eos_token=special[2],
        extra_special_tokens={"image_token": special[5], "video_token": special[6]},
    )
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    pixels = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
    processor = Qwen2VLProcessor(pixels, tokenizer, Qwen2VLVideoProcessor(), chat_template=template)
    rope = {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]}
    text = {**SIZES, "num_hidden_layers": 2, "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
    config = Qwen2VLConfig(
        text_config=text | {"rope_scaling": rope, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 0},
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1},
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    torch.manual_seed(1)
    return save(Qwen2VLForConditionalGeneration(config), processor, folder)


@pytest.fixture(scope="module")
def writing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HfJudge]:
    root = tmp_path_factory.mktemp("writing")
    made = {"paligemma": tiny_paligemma, "qwen": tiny_qwen, "git": tiny_git}
    return {name: load_hf(str(make(root / name))) for name, make in made.items()}


def pictures(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (40, 48, 3)).astype(np.uint8)) for _ in range(count)]


def of_whole_texts(judge: HfJudge, asked: Asked) -> list[float]:
    """The softmax of what one forward of the whole text, each choice after the prompt, gives its tokens."""
    prompt = hf_judge._open_prompt(judge, asked)
    scores = []
    for choice in asked.choices:
        tokens = torch.tensor([hf_judge._choice_tokens(judge, choice, prompt["input_ids"])])
        whole = dict(prompt)
        for name, value in prompt.items():
            if value.shape == prompt["input_ids"].shape:  # PaliGemma's type 1: written, not read in both ways
                more = (
                    tokens if name == "input_ids" else torch.ones_like(tokens) * (name != "mm_token_type_ids")
                )
                whole[name] = torch.cat([value, more], 1)
        with torch.inference_mode():
            logits = judge.model(**whole).logits[:, -tokens.shape[1] - 1 : -1].float()
        scores.append(float(logits.log_softmax(-1).gather(-1, tokens[..., None]).sum()))
    return torch.tensor(scores).softmax(0).tolist()


@pytest.mark.parametrize("kind", ["paligemma", "qwen", "git"])
def test_choices_are_as_likely_as_the_models_own_forward_says(writing: dict[str, HfJudge], kind: str) -> None:
    judge = writing[kind]
    image, other = pictures(2)
    batch = [
        Asked(image, "what color are the dogs?", COLOURS),
        Asked(other, "what color are the dogs?", COLOURS),
        Asked(image, "is there a dog?", ("yes", "no")),
        Asked(other, "is it a cat?", ("no", "yes")),
    ]
    answers = judge.answers(batch)
    for asked, answer in zip(batch, answers, strict=True):
        assert answer.probabilities == pytest.approx(of_whole_texts(judge, asked), rel=1e-3, abs=1e-6)
        assert judge.answer(*asked).probabilities == pytest.approx(answer.probabilities, rel=1e-4)
    seen = answers[0].probabilities  # the same words on another picture
    assert seen != pytest.approx(answers[1].probabilities, rel=1e-7, abs=0)


def test_questions_of_one_shape_are_one_forward(
    writing: dict[str, HfJudge], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, seen = writing["qwen"], []
    forward = judge.model.forward

    @wraps(forward)
    def counted(*values: Any, **named: Any) -> Any:
        seen.append(len(named["input_ids"]))
        return forward(*values, **named)

    monkeypatch.setattr(judge.model, "forward", counted)
    judge.answers([Asked(image, "is it a dog?", ("1", "2", "3")) for image in pictures(8)])
    assert seen == [8]


def test_a_batch_that_is_too_large_is_halved(
    writing: dict[str, HfJudge], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, seen = writing["paligemma"], []
    forward = judge.model.forward

    @wraps(forward)
    def small(*values: Any, **named: Any) -> Any:
        seen.append(len(named["input_ids"]))
        if seen[-1] > 2:
            raise torch.cuda.OutOfMemoryError("too large")
        return forward(*values, **named)

    batch = [Asked(image, "is it a dog?", ("1", "2", "3")) for image in pictures(4)]
    whole = judge.answers(batch)
    monkeypatch.setattr(judge.model, "forward", small)
    halves = judge.answers(batch)
    assert seen == [4, 2, 2]
    for one, other in zip(whole, halves, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, rel=1e-4)


def test_choices_share_the_beginnings_that_others_go_on_from() -> None:
    assert beginnings([(1,), (2,), (3,)]) == [()]
    assert beginnings([(1, 2), (1, 3), (4,), (1, 2, 5)]) == [(1, 2)]
    assert beginnings([(1, 2), (3, 4)]) == [(1,), (3,)]
