"""Judges: statements, the blind ones, nano-judge with random weights, and tiny Hugging Face models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from promptcdm.answer import Answer, Asked, match_choice, most_likely
from promptcdm.errors import AdapterMismatch, BadInput
from promptcdm.hf_judge import load_hf
from promptcdm.judge import load_judge, torch_device
from promptcdm.nano_judge import (
    NanoConfig,
    NanoJudge,
    Vocabulary,
    encode_regions,
    load_nano,
    read,
    save_nano,
    score,
)
from promptcdm.question_words import word_set
from promptcdm.square_picture import image_tensor
from promptcdm.statements import plain, statement

WORDS = sorted(
    word_set("yes no is there a the red blue cat dog how many are two three what color ? left of in picture")
)


def pictures() -> tuple[Image.Image, Image.Image]:
    return Image.new("RGB", (48, 40), "red"), Image.new("RGB", (48, 40), "blue")


def questions() -> list[Asked]:
    first, second = pictures()
    return [
        Asked(first, "is there a cat?", ("yes", "no")),
        Asked(second, "how many cats are there?", ("3", "1", "2", "4")),
        Asked(first, "what color is the dog?", ("red", "blue cat", "two")),
    ]


@pytest.mark.parametrize(
    ("question", "choice", "expected"),
    [
        ("is there a cat?", "yes", "cat"),
        ("Is there a cat in the picture?", "no", "not cat"),
        ("are there three cats?", "yes", "three cat"),
        ("are there 3 cats?", "no", "not three cat"),
        ("is the apple red?", "no", "not red apple"),
        ("what color are the apples?", "red", "red apple"),
        ("how many cats are in the picture?", "2", "two cat"),
        ("how many fire trucks are there?", "4", "four fire truck"),
        ("where is the dog?", "left of the cat", "dog left cat"),
        ("is the dog to the left of the cat?", "yes", "dog left cat"),
        ("what is in the picture?", "hot dog", "hot dog"),
        ("what animal is in the picture with the cat?", "dog", "dog"),
        ("is the cat big or small?", "small", "small cat"),
        ("who is on the beach?", "surfer", "surfer beach"),
        ("what is the man holding?", "a beer", "beer man holding"),
    ],
)
def test_statements(question: str, choice: str, expected: str) -> None:
    assert statement(question, choice) == expected


def test_plain_words_of_captions() -> None:
    assert plain("An emoji of two red apples") == "two red apple"
    assert plain("A picture frame on the bus") == "frame bus"


def test_unknown_judges_are_refused_with_the_accepted_ones() -> None:
    for name in ("clip", "hf:", "", "Nano-judge"):
        with pytest.raises(BadInput, match=r"nano-judge, hf:ID_OR_FOLDER, openai:URL#MODEL, replay:NAME"):
            load_judge(name)
    with pytest.raises(BadInput, match="'tpu'"):
        torch_device("tpu")


def test_blind_judges() -> None:
    yes, first = load_judge("always-yes"), load_judge("first-choice")
    assert yes.blind
    assert first.blind
    assert [answer.choice for answer in yes.answers(questions())] == ["yes"] * 3
    assert [answer.choice for answer in first.answers(questions())] == ["yes", "3", "red"]
    image = pictures()[0]
    assert yes.answer(image, "what?", ["red"]).choice == "yes"
    assert first.answer(image, "what?", ["red", "blue"]).choice == "red"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Red.", "red"),
        ("the cats", "cat"),
        ("two", "2"),
        ("it is a cat, I think", "cat"),
        ("a red cat", "a red cat"),  # two of the choices: none is meant
        ("catalogue", "catalogue"),
    ],
)
def test_free_words_are_matched_to_a_choice_or_to_none(said: str, expected: str) -> None:
    answer = match_choice(said, ("red", "cat", "2"))
    assert answer.choice == expected
    assert answer.free_form == said


def test_of_equals_the_first() -> None:
    assert most_likely(("a", "b", "c"), (0.2, 0.4, 0.4)) == Answer("b", (0.2, 0.4, 0.4))


# nano-judge


def random_nano() -> tuple[Any, NanoConfig]:
    vision = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "image_size": 32}
    text = {"width": 16, "heads": 2, "layers": 1}
    vocabulary = Vocabulary(("blue", "cat", "dog", "not", "one", "red", "three", "two"), 6)
    config = NanoConfig(8, vision, text, vocabulary)
    torch.manual_seed(0)
    return config.build(), config


def test_vocabulary_ends_where_open_clip_pools() -> None:
    vocabulary = Vocabulary(("cat", "dog"), 4)
    tokens = vocabulary.encode(["dog", "cat zebra", "dog cat dog cat dog"])
    assert tokens.tolist() == [[3, 4, 0, 0], [2, 1, 4, 0], [3, 2, 3, 4]]
    assert vocabulary.size == 5


def test_nano_judge_answers_by_softmax_over_statements() -> None:
    model, config = random_nano()
    judge = NanoJudge(model, config)
    image = pictures()[0]
    (probabilities,) = judge.probabilities([Asked(image, "what is in the picture?", ("cat", "red dog"))])
    with torch.inference_mode():
        seen = model.encode_image(image_tensor(image, 32)[None], normalize=True)
        said = model.encode_text(config.vocabulary.encode(["cat", "red dog"]), normalize=True)
        # A picture of 32 px has one place on the grid, and so one region.
        expected = (model.logit_scale.exp() * seen @ said.T).softmax(-1)[0]
    assert probabilities == pytest.approx(expected.tolist(), abs=1e-5)
    assert judge.answer(image, "what is in the picture?", ["cat", "red dog"]).probabilities == probabilities


def test_nano_judge_in_a_batch_and_alone_and_whatever_the_order() -> None:
    judge = NanoJudge(*random_nano())
    batch = questions()
    together = judge.answers(batch)
    for asked, answer in zip(batch, together, strict=True):
        turned = judge.answer(asked.image, asked.question, asked.choices[::-1])
        assert turned.choice == answer.choice
        assert turned.probabilities == pytest.approx(answer.probabilities[::-1], abs=1e-5)


def test_nano_judge_sees_the_picture() -> None:
    judge = NanoJudge(*random_nano())
    red, blue = (judge.probabilities([Asked(i, "is there a cat?", ("yes", "no"))]) for i in pictures())
    assert red != blue


def test_nano_judge_folder(tmp_path: Path) -> None:
    model, config = random_nano()
    save_nano(tmp_path, model, config)
    loaded = load_nano(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["config.json", "model.safetensors"]
    batch = questions()
    expected = NanoJudge(model, config).probabilities(batch)
    for ours, theirs in zip(loaded.probabilities(batch), expected, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-3)  # fp16


def test_nano_judge_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"config\.json: cannot be read"):
        load_nano(tmp_path)
    model, config = random_nano()
    save_nano(tmp_path, model, config)
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text(text.replace('"blue"', '"blue", "more"'), encoding="utf-8")
    with pytest.raises(BadInput, match="does not fit"):
        load_nano(tmp_path)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BadInput, match="is not a nano-judge config"):
        load_nano(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(AdapterMismatch):
        load_nano(tmp_path)


def test_pictures_are_made_square_on_white() -> None:
    tensor = image_tensor(Image.new("RGB", (64, 32), "black"), 64)
    assert tensor.shape == (3, 64, 64)
    assert tensor[:, 32].mean() == -1
    assert tensor[:, 2].mean() == 1


# Hugging Face models, tiny and random, with tokenizers made here


def bert_tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *"0123456789",
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    vocabulary += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    path = folder / "vocab.txt"
    path.write_text("\n".join(dict.fromkeys(vocabulary)) + "\n", encoding="utf-8")
    return BertTokenizer(str(path))


def tiny_blip(folder: Path) -> Path:
    from transformers import BlipConfig, BlipForQuestionAnswering, BlipImageProcessor, BlipProcessor

    tokenizer = bert_tokenizer(folder)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {**size, "vocab_size": len(tokenizer), "encoder_hidden_size": 16, "max_position_embeddings": 32}
    ids = {"bos_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id, "pad_token_id": 0}
    config = BlipConfig(text_config=text | ids, vision_config={**size, "image_size": 32, "patch_size": 16})
    torch.manual_seed(1)
    model = BlipForQuestionAnswering(config)
    # Random weights of the usual size give nearly the same score to everything.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    model.save_pretrained(folder)
    processor = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def tiny_vilt(folder: Path) -> Path:
    from transformers import ViltConfig, ViltForQuestionAnswering, ViltImageProcessor, ViltProcessor

    tokenizer = bert_tokenizer(folder)
    answers = ["yes", "no", "1", "2", "3", "4", "purple"]
    config = ViltConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        id2label=dict(enumerate(answers)),
        label2id={answer: index for index, answer in enumerate(answers)},
    )
    torch.manual_seed(1)
    ViltForQuestionAnswering(config).save_pretrained(folder)
    processor = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    ViltProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def tiny_git(folder: Path) -> Path:
    from transformers import CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor

    tokenizer = bert_tokenizer(folder)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ids = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    vision = {**size, "image_size": 32, "patch_size": 16}
    torch.manual_seed(1)
    model = GitForCausalLM(GitConfig(vision_config=vision, vocab_size=len(tokenizer), **size, **ids))
    model.save_pretrained(folder)
    pixels = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    GitProcessor(CLIPImageProcessor(**pixels), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_hf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hf")
    return {
        "blip": tiny_blip(root / "blip"),
        "vilt": tiny_vilt(root / "vilt"),
        "git": tiny_git(root / "git"),
    }


@pytest.mark.parametrize("kind", ["blip", "vilt", "git"])
def test_hugging_face_judges_answer_by_likelihood(tiny_hf: dict[str, Path], kind: str) -> None:
    judge = load_judge(f"hf:{tiny_hf[kind]}", device="cpu")
    assert judge.name == f"hf:{tiny_hf[kind]}"
    batch = questions()[:2]
    answers = judge.answers(batch)
    for asked, answer in zip(batch, answers, strict=True):
        assert answer.choice in asked.choices
        assert answer.probabilities is not None
        assert sum(answer.probabilities) == pytest.approx(1)
        assert len(set(answer.probabilities)) > 1
        alone = judge.answer(*asked)
        assert alone.probabilities == pytest.approx(answer.probabilities, abs=1e-4)


def test_blip_scores_are_those_of_its_own_loss(tiny_hf: dict[str, Path]) -> None:
    """-loss x tokens of transformers' own forward is the log-likelihood that the choices are compared by."""
    judge = load_hf(str(tiny_hf["blip"]))
    image = pictures()[0]
    choices = ("red", "blue cat", "two")
    answer = judge.answer(image, "what color is the dog?", choices)
    inputs = judge.processor(images=image, text="what color is the dog?", return_tensors="pt")
    scores = []
    for choice in choices:
        labels = judge.processor.tokenizer(choice, return_tensors="pt")["input_ids"]
        labels[:, 0] = judge.model.decoder_start_token_id
        with torch.inference_mode():
            loss = judge.model(**inputs, labels=labels).loss
        scores.append(-float(loss) * (labels.shape[1] - 1))
    # Training smooths its labels; without smoothing the losses are the likelihoods.
    assert judge.model.text_decoder.label_smoothing == 0
    assert answer.probabilities == pytest.approx(torch.tensor(scores).softmax(0).tolist(), abs=1e-4)


def test_vilt_says_its_own_words_where_a_choice_is_none_of_its_answers(tiny_hf: dict[str, Path]) -> None:
    judge = load_hf(str(tiny_hf["vilt"]))
    answer = judge.answer(pictures()[0], "what color is the dog?", ("crimson", "azure"))
    assert answer.probabilities is None
    assert answer.choice == answer.free_form
    assert answer.choice in judge.model.config.id2label.values()


def test_hugging_face_folders_that_are_no_judges(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot be loaded .*safetensors"):
        load_judge(f"hf:{tmp_path}")
    from transformers import BertConfig

    BertConfig(vocab_size=10, hidden_size=8).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="bert model, which answers no questions about pictures"):
        load_judge(f"hf:{tmp_path}")


def test_a_judge_is_given_nothing_but_picture_question_and_choices() -> None:
    """What a judge gets is a tuple of three: no answer, caption, id or prompt can reach it."""
    assert Asked._fields == ("image", "question", "choices")


def test_the_whole_region_is_open_clips_own_embedding() -> None:
    """Of nine regions the first is the whole; a quarter does not depend on the pooling of the others."""
    vision = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "image_size": 64}
    vocabulary = Vocabulary(("cat",), 4)
    torch.manual_seed(0)
    model = NanoConfig(8, vision, {"width": 16, "heads": 2, "layers": 1}, vocabulary).build().eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        regions = encode_regions(model, images)
        whole = model.encode_image(images, normalize=True)
    assert regions.shape == (3, 9, 8)
    assert torch.allclose(regions[:, 0], whole, atol=1e-5)
    assert (regions[:, 0] - regions[:, 4]).abs().max() > 1e-3
    assert torch.allclose(regions.norm(dim=-1), torch.ones(3, 9), atol=1e-5)


@pytest.mark.parametrize(
    ("said", "way", "texts"),
    [
        ("red cat", "anywhere", ("red cat", "red cat")),
        ("not red cat", "anywhere", ("not red cat", "not red cat")),
        ("three cat", "whole", ("three cat", "three cat")),
        ("hot dog left red cat", "halves", ("hot dog", "red cat")),
        ("not dog above cat", "halves", ("not dog", "not cat")),
        ("left arrow", "anywhere", ("left arrow", "left arrow")),
        ("hand pointing left", "anywhere", ("hand pointing left", "hand pointing left")),
    ],
)
def test_how_a_statement_is_read(said: str, way: str, texts: tuple[str, str]) -> None:
    reading = read(said)
    assert (reading.way, reading.texts, reading.denied) == (way, texts, said.startswith("not "))


def test_scores_of_every_way_of_reading() -> None:
    """A picture with the cat at its left and the dog at its right, made by hand."""
    texts = ["cat", "dog", "not cat", "not dog", "two cat"]
    regions = 9
    similar = torch.zeros(1, regions, len(texts))
    for region in range(regions):
        left, right = region in (0, 1, 3, 4, 6, 7), region in (0, 2, 3, 5, 6, 8)
        similar[0, region] = torch.tensor([left, right, not left, not right, region == 1]).float()

    def scored(statement: str) -> float:
        reading = read(statement)
        return float(score(similar, texts, [reading])[0, 0])

    assert scored("cat") == 1
    assert scored("not cat") == 0
    assert scored("two cat") == 0  # the left half alone says so
    assert (scored("cat left dog"), scored("dog left cat")) == (1, 0)
    assert (scored("dog right cat"), scored("cat right dog")) == (1, 0)
    assert scored("cat above dog") == 1  # both are in both of these halves
    assert (scored("not cat left dog"), scored("not dog left cat")) == (0, 1)
