"""The models that are compared: a checkpoint, its baseline, and blends of their text towers.

There are two kinds of blends; beta is the baseline's share:

    embedding    normalise(beta * T_base(y) + (1 - beta) * T_tuned(y)), T unit-norm text vectors
    weight       T with the weights beta * W_base + (1 - beta) * W_tuned (WiSE-FT, arXiv 2109.01903)

A checkpoint with a third tower is itself an embedding blend; its beta is the share of the frozen text tower.

All models are encoded in one pass: each text once per distinct text tower, each image once per distinct image tower.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dialog_eval.results import Blend, Entry, Metric
from dialog_gen.clip.base import Clip, TextPart
from dialog_gen.clip.text.tokens import Ids, TextEncoder
from dialog_gen.clip.text.tower import TextTower, encode_ids, mixed
from dialog_gen.core.errors import UsageError
from dialog_gen.core.tensors import sha256_of_weights

Shares = tuple[tuple[int, float], ...]
"""Index of a text tower and the share of its vectors, for each part of a text vector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One model of a comparison."""

    label: str
    clip: Clip
    """For a blend, the tuned model."""
    image_tower: int
    """Index into `Models.image_towers`."""
    shares: Shares
    question_shares: Shares
    """The same for texts that were made of a question: a model may read them with another tower."""
    blend: Blend | None = None
    beta: float | None = None

    def entry(self, task: str, dataset: str, protocol: str, metrics: list[Metric], *, label_suffix: str = "") -> Entry:
        """The results entry of this model. With a suffix it is a separate measurement, not a point of a sweep."""
        return Entry(
            label=self.label + label_suffix,
            task=task,
            dataset=dataset,
            protocol=protocol,
            model=self.clip.name,
            weights_sha256=self.clip.weights_sha256,
            blend=None if label_suffix else self.blend,
            beta=None if label_suffix else self.beta,
            metrics=metrics,
        )


class Models:
    """A checkpoint, or a baseline, a checkpoint and the blends between them.

    `variants` contains the baseline, the checkpoint, and the blends in the order given. `alone` contains the same
    without the blends.
    """

    def __init__(
        self,
        checkpoint: Clip,
        label: str,
        baseline: Clip | None = None,
        baseline_label: str = "",
        blends: Sequence[tuple[Blend, float]] = (),
        *,
        device: torch.device | str = "cpu",
        batch_size: int = 256,
    ) -> None:
        """`blends`: kind and beta, 0 < beta < 1. The models are moved to `device`.

        Raises UsageError for equal labels, blends without a baseline, models that cannot be blended, and a text tower
        of an unknown kind.
        """
        self.device, self.batch_size = torch.device(device), batch_size
        self.texts = self.truncated_texts = 0
        """Number of texts that were tokenised, and of those that were longer than a model's context."""
        self.image_towers, self._texts = [checkpoint], list[_TextSide]()
        if baseline is None:
            if blends:
                raise UsageError("a blend is of two models: give --baseline.")
            self.alone = self.variants = [self._alone(checkpoint, label, image_tower=0)]
            return
        if label == baseline_label:
            raise UsageError(f"checkpoint and baseline are both labelled {label!r}: give --label or --baseline-label.")
        one_image_tower = _image_side(baseline) == _image_side(checkpoint)
        if blends and not one_image_tower:
            raise UsageError(
                f"{baseline_label} and {label} have different image towers: text towers are blended only if they "
                "were tuned to one image tower."
            )
        if not one_image_tower:
            self.image_towers = [baseline, checkpoint]
        base = self._alone(baseline, baseline_label, image_tower=0)
        tuned = self._alone(checkpoint, label, image_tower=len(self.image_towers) - 1)
        self.alone, self.variants = [base, tuned], [base, tuned]
        for blend, beta in blends:
            name = _blend_label(label, blend, beta)
            shares, question_shares = (
                (*_scaled(first, beta), *_scaled(second, 1 - beta))
                for first, second in ((base.shares, tuned.shares), (base.question_shares, tuned.question_shares))
            )
            if blend == "weight":
                shares = question_shares = self._weight_blend(base, tuned, beta, name)
            self.variants.append(
                replace(tuned, label=name, shares=shares, question_shares=question_shares, blend=blend, beta=beta)
            )

    @property
    def tuned(self) -> Variant | None:
        """The checkpoint, if it is compared with a baseline."""
        return self.alone[1] if len(self.alone) > 1 else None

    def encode_images(self, pixels: Tensor, image_tower: int) -> Tensor:
        """Encodes pixels (N, 3, H, W), preprocessed for that tower, to unit-norm float32 (N, D) on the device.

        Raises UsageError for vectors that are not finite.
        """
        return self.image_towers[image_tower].to(self.device).embed_images(pixels.to(self.device))

    def encode_texts(self, texts: Sequence[str], advance: Callable[[float], None] = lambda texts: None) -> list[Tensor]:
        """Encodes texts to unit-norm vectors (N, D) of each text tower, for `text_vectors`.

        `advance` is called with the number of finished texts; a text encoded by one tower of four counts as a quarter.
        Raises UsageError for a vector that is not finite.
        """
        encoders = {id(side.encoder): side.encoder for side in self._texts}
        tokens: dict[int, list[Ids]] = {}
        for key, encoder in encoders.items():
            tokens[key], cut = encoder(texts)
            self.texts += len(cut)
            self.truncated_texts += sum(cut)
        return [
            encode_ids(
                side.tower,
                side.encoder,
                tokens[id(side.encoder)],
                side.name,
                batch_size=self.batch_size,
                advance=lambda count: advance(count / len(self._texts)),
            )
            for side in self._texts
        ]

    @staticmethod
    def text_vectors(variant: Variant, encoded: list[Tensor], *, questions: bool = False) -> Tensor:
        """The text vectors (N, D) of a variant, computed from the result of `encode_texts`.

        `questions`: whether the texts were made of a question.
        """
        shares = variant.question_shares if questions else variant.shares
        return mixed([share for _, share in shares], [encoded[tower] for tower, _ in shares])

    def _alone(self, clip: Clip, label: str, image_tower: int) -> Variant:
        """The variant of a model without blending."""
        shares, question_shares = (
            tuple((self._text_side(part), part.share) for part in reader.text_parts())
            for reader in (clip, clip.for_questions())
        )
        return Variant(
            label=_blend_label(label, "embedding", clip.beta) if clip.beta else label,
            clip=clip,
            image_tower=image_tower,
            shares=shares,
            question_shares=question_shares,
            blend="embedding" if clip.beta else None,
            beta=clip.beta or None,
        )

    def _weight_blend(self, base: Variant, tuned: Variant, beta: float, name: str) -> Shares:
        """Adds a text tower with blended weights and returns its index, with share 1."""
        if len({*base.shares, *base.question_shares}) > 1 or len({*tuned.shares, *tuned.question_shares}) > 1:
            raise UsageError(f"{name}: weights are blended of one text tower and another: use --blend embedding.")
        _check_one_architecture(base.clip, tuned.clip)
        first, second = (self._texts[variant.shares[0][0]] for variant in (base, tuned))
        self._texts.append(replace(second, name=name, tower=blend_weights(first.tower, second.tower, beta)))
        return ((len(self._texts) - 1, 1.0),)

    def _text_side(self, part: TextPart) -> int:
        """The index of a text tower; a known tower is not added again."""
        clip = part.clip
        same = (known.encoder for known in self._texts if known.clip.tokenizer is clip.tokenizer)
        encoder = next(same, None) or TextEncoder(clip.tokenizer)
        side = _TextSide(clip, clip.name, part.tower.to(self.device).eval(), encoder)
        for index, known in enumerate(self._texts):
            if known.encoder is not encoder and _tokenization(known) != _tokenization(side):
                continue
            side.encoder = known.encoder
            if (known.clip.weights_sha256, _text_config(known.clip)) == (clip.weights_sha256, _text_config(clip)):
                return index
        self._texts.append(side)
        return len(self._texts) - 1


@dataclass(slots=True)
class _TextSide:
    clip: Clip
    name: str
    tower: TextTower
    encoder: TextEncoder


def _blend_label(label: str, blend: Blend, beta: float) -> str:
    return f"{label}, {blend} blend {beta:g}"


def _scaled(shares: Shares, factor: float) -> Shares:
    return tuple((tower, factor * share) for tower, share in shares)


def blend_weights(base: TextTower, tuned: TextTower, beta: float) -> TextTower:
    """A new tower with the weights beta * base + (1 - beta) * tuned (arXiv 2109.01903)."""
    weights, others = tuned.state_dict(), base.state_dict()
    mixed = {
        name: beta * others[name] + (1 - beta) * value if value.is_floating_point() else value
        for name, value in weights.items()
    }
    blended = copy.deepcopy(tuned)
    blended.load_state_dict(mixed)
    return blended


def _check_one_architecture(baseline: Clip, checkpoint: Clip) -> None:
    first, second = (
        {name: tuple(value.shape) for name, value in TextTower(clip.model).state_dict().items()}
        for clip in (baseline, checkpoint)
    )
    if first != second:
        name = min(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
        how = f"{name} is {first.get(name, 'not')} there, {second.get(name, 'not')} in {checkpoint.name}"
    elif _text_config(baseline) != _text_config(checkpoint):
        how = "their text configurations differ"
    else:
        return
    raise UsageError(
        f"the weights of {baseline.name} and {checkpoint.name} are of different architectures ({how}): "
        "use --blend embedding, or the baseline that the checkpoint was tuned from."
    )


def _text_config(clip: Clip) -> Any:
    return json.loads(json.dumps([clip.config.get("text_cfg"), bool(clip.config.get("quick_gelu"))]))


def _tokenization(side: _TextSide) -> Any:
    """A key that is equal for models that tokenise texts identically."""
    return _text_config(side.clip)[0], side.encoder.vocabulary_sha256, side.encoder.context_length


def _image_side(clip: Clip) -> Any:
    """A key that is equal for models that embed images identically."""
    weights = sha256_of_weights(clip.model.visual.state_dict())
    config = [clip.config.get("vision_cfg"), bool(clip.config.get("quick_gelu")), clip.preprocess_config]
    return weights, json.loads(json.dumps(config))
