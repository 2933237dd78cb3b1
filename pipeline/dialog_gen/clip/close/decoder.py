"""A T5 (arXiv 1910.10683) whose encoder reads a CLIP vector, followed by a prompt."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from dialog_gen.core.errors import UsageError
from dialog_gen.core.progress import without_transformers_bars

_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"


class CloseDecoder(nn.Module):
    """A T5 with a prefix: a linear layer maps a CLIP vector (D,) to the encoder's first inputs (prefix, d_model)."""

    def __init__(self, t5: T5ForConditionalGeneration, tokenizer: Any, width: int, prefix_vectors: int = 4) -> None:
        super().__init__()
        self.t5: Any = t5
        self.tokenizer = tokenizer
        self.width, self.prefix_vectors = width, prefix_vectors
        self.projection = nn.Linear(width, prefix_vectors * self.t5.config.d_model)

    def forward(self, vectors: Tensor, prompts: Tensor, targets: Tensor) -> Tensor:
        """Unit-norm vectors (N, D), padded prompts (N, L), targets (N, T; negative: padding) -> logits (N, T, V)."""
        start = self.t5.config.decoder_start_token_id
        shifted = torch.cat([torch.full_like(targets[:, :1], start), targets[:, :-1]], dim=1)
        shifted = shifted.masked_fill(shifted < 0, self.pad_id)
        return self.t5(**self._inputs(vectors, prompts), decoder_input_ids=shifted).logits

    @torch.inference_mode()
    def write(self, vectors: Tensor, prompts: Sequence[str], *, beams: int = 5, max_tokens: int = 32) -> list[str]:
        """Writes one text for each of N unit-norm vectors (N, D) and N prompts, by deterministic beam search."""
        ids = self.token_ids(prompts, max_tokens=None)[0].to(vectors.device)
        inputs = self._inputs(vectors, ids)
        written = self.t5.generate(**inputs, num_beams=beams, max_new_tokens=max_tokens, do_sample=False)
        texts: list[str] = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def token_ids(self, texts: Sequence[str], max_tokens: int | None) -> tuple[Tensor, int]:
        """Padded token ids (N, L) with end tokens, and the number of texts that were truncated to `max_tokens`."""
        rows: list[list[int]] = self.tokenizer(list(texts))["input_ids"]
        cut = 0
        if max_tokens is not None:
            cut = sum(len(row) > max_tokens for row in rows)
            rows = [row if len(row) <= max_tokens else [*row[: max_tokens - 1], row[-1]] for row in rows]
        length = max(map(len, rows))
        return torch.tensor([row + [self.pad_id] * (length - len(row)) for row in rows]), cut

    @property
    def pad_id(self) -> int:
        """The id of the tokenizer's padding token."""
        return self.tokenizer.pad_token_id

    def _inputs(self, vectors: Tensor, prompts: Tensor) -> dict[str, Tensor]:
        prefix = self.projection(vectors).unflatten(1, (self.prefix_vectors, -1))  # (N, prefix, d_model)
        embedded = torch.cat([prefix, self.t5.get_input_embeddings()(prompts)], dim=1)
        mask = torch.cat([prompts.new_ones(prefix.shape[:2]), (prompts != self.pad_id).long()], dim=1)
        return {"inputs_embeds": embedded, "attention_mask": mask}


def load_t5(name: str, revision: str | None = None, *, local: bool = False) -> tuple[Any, Any]:
    """Loads a T5 (float32) and its tokenizer; with `local`, from a folder, without network.

    Raises UsageError if the model cannot be loaded or is not a T5.
    """
    options: dict[str, Any] = {"revision": revision or "main", "local_files_only": local}
    try:
        with without_transformers_bars():
            kind = AutoConfig.from_pretrained(name, **options).model_type
            if kind != T5Config.model_type:
                raise ValueError(f"it is of the kind {kind!r}")
            t5: Any = T5ForConditionalGeneration.from_pretrained(
                name, use_safetensors=True, dtype=torch.float32, **options
            )
        return t5, AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, RuntimeError) as error:
        said = str(error).strip().split("\n")[0]
        raise UsageError(f"{name} cannot be loaded as a T5 with its tokenizer ({said}).") from None


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words and punctuation marks of `texts`; anything else is unknown."""
    backend = Tokenizer(models.WordLevel(unk_token=_UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # Joins words with spaces, except before punctuation. No word has the prefix "##", since "#" is punctuation.
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    special = [_PAD, _END, _UNKNOWN]
    backend.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {_END}", special_tokens=[(_END, special.index(_END))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=_PAD, eos_token=_END, unk_token=_UNKNOWN)


def new_t5(
    tokenizer: Any,
    *,
    width: int,
    layers: int,
    heads: int,
    dropout: float = 0.1,
    vocabulary: int | None = None,
    inner: int | None = None,
    head_width: int | None = None,
) -> Any:
    """A T5 with random weights and `layers` layers each in the encoder and the decoder.

    By default the vocabulary is the tokenizer's, `inner` is four times the width, and the heads share the width.
    """
    config = T5Config(
        vocab_size=vocabulary or len(tokenizer),
        d_model=width,
        d_kv=head_width or width // heads,
        d_ff=inner or 4 * width,
        num_layers=layers,
        num_heads=heads,
        dropout_rate=dropout,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config.decoder_start_token_id = tokenizer.pad_token_id
    return T5ForConditionalGeneration(config)
