"""A language model of transformers, by hub id or folder, that writes on from a prompt.

The likeliest token each time, so that the same model writes the same. A model with a chat template is asked in it.
Weights are read from safetensors only, and no code of a repository is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from promptcdm.errors import BadInput, RunFailed
from promptcdm.halves import in_halves
from promptcdm.hub_revision import revision

NEW_TOKENS = 768
_AT_ONCE = 8


@dataclass(frozen=True)
class HfWriter:
    """A model with its tokenizer."""

    name: str
    version: str
    model: Any
    tokenizer: Any
    device: str
    new_tokens: int = NEW_TOKENS

    def write(self, prompts: Sequence[str]) -> list[str]:
        """What it writes after each prompt. Raises RunFailed where one prompt alone is too long or too large."""
        alone = RunFailed(f"{self.name}: one prompt needs more memory than there is")
        return [
            words
            for at in range(0, len(prompts), _AT_ONCE)
            for words in in_halves(self._written, prompts[at : at + _AT_ONCE], alone)
        ]

    def _written(self, prompts: Sequence[str]) -> list[str]:
        chat = bool(getattr(self.tokenizer, "chat_template", None))
        texts = [self._in_chat(prompt) if chat else prompt for prompt in prompts]
        # Padded on the left, so that every row's last token is where it goes on.
        inputs = self.tokenizer(
            texts, padding=True, padding_side="left", add_special_tokens=not chat, return_tensors="pt"
        ).to(self.device)
        length = inputs["input_ids"].shape[1]
        room = getattr(self.model.config, "max_position_embeddings", None)
        if room is not None and length + self.new_tokens > room:
            raise RunFailed(
                f"{self.name}: reads {room} tokens, and a prompt of {length} with {self.new_tokens} to write is "
                "longer; give a model of longer texts"
            )
        with torch.inference_mode():
            written = self.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=self.new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        found: list[str] = self.tokenizer.batch_decode(written[:, length:], skip_special_tokens=True)
        return found

    def _in_chat(self, prompt: str) -> str:
        turns = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def load_writer(model: str, device: str = "cpu", *, new_tokens: int = NEW_TOKENS) -> HfWriter:
    """Load a causal language model and its tokenizer. Raises BadInput where they are not or are of another kind."""
    try:
        config = AutoConfig.from_pretrained(model)
        tokenizer = AutoTokenizer.from_pretrained(model)
        dtype = torch.float32 if device == "cpu" else "auto"
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"writer 'llm:{model}' cannot be loaded ({reason}); give the folder or hub id of a causal language model "
            "with its tokenizer and safetensors weights"
        ) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise BadInput(f"writer 'llm:{model}': its tokenizer has no end of text; give another model")
        tokenizer.pad_token = tokenizer.eos_token
    return HfWriter(
        f"llm:{model}", revision(model, config), loaded.eval().to(device), tokenizer, device, new_tokens
    )
