"""Make nano's CLIPTokenizer: byte-pair encoding whose vocabulary is the words of emojibase's labels and tags (MIT).

The words of withheld concepts are in the vocabulary, as CLIP's knows words it saw no picture of; no picture or
caption of theirs is trained on, so their embeddings keep their random start.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

VOCABULARY = 6144
MAX_LENGTH = 32
TEMPLATE_WORDS = """
a an the of with and to in on above below left right next under over one two three four five six picture icon
drawing image photo emoji small large big red orange yellow green blue purple pink brown black white grey gray
cyan is are this that it its from for by at near beside between style flat simple colourful colorful
"""


def words_of(emojibase: Path) -> Counter[str]:
    """Words of every label and tag, with counts, from `emojibase-data/en/data.json`."""
    words: Counter[str] = Counter()
    for row in json.loads(emojibase.read_text(encoding="utf-8")):
        words.update(re.findall(r"[a-z]+", " ".join(row.get("tags", ())).lower()))
        for word in re.findall(r"[a-z]+", row["label"].lower()):
            words[word] += 20
    words.update({word: 50 for word in TEMPLATE_WORDS.split()})
    words.update({word + "s": 5 for word, count in list(words.items()) if count >= 20 and len(word) > 2})
    return words


def make_tokenizer(emojibase: Path, folder: Path) -> None:
    """Write vocab.json, merges.txt and the configuration that stock CLIPTokenizer loads."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        end_of_word_suffix="</w>",
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = words_of(emojibase)
    tokenizer.train_from_iterator((word for word in sorted(words) for _ in range(words[word])), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    # CLIP's alphabet holds every byte twice: inside a word and at its end.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(merge) for merge in learned["merges"]]
    tokens = alphabet + [a + "</w>" for a in alphabet] + ["".join(merge) for merge in merges]
    tokens = [*list(dict.fromkeys(tokens))[: VOCABULARY - 2], "<|startoftext|>", "<|endoftext|>"]
    kept = set(tokens)
    merges = [m for m in merges if "".join(m) in kept and m[0] in kept and m[1] in kept]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n", encoding="utf-8"
    )
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
