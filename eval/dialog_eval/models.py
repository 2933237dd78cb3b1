"""The models that are compared: a checkpoint, its baseline, and blends of the two text sides.

Two ways to blend, beta being the baseline's share:

    embedding    normalise(beta * T_base(y) + (1 - beta) * T_tuned(y)), T unit-norm text vectors
    weight       T of the weights beta * W_base + (1 - beta) * W_tuned (WiSE-FT, arXiv 2109.01903)

A checkpoint with a third tower is an embedding blend by itself, beta being the share of its frozen text tower.

All that is compared is encoded in one pass: a text once by each text tower, an image once by each image tower, where
equal towers count as one.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dialog_eval.results import Entry, Metric, Task
from dialog_gen.clip.loader import Clip, sha256_of_weights
from dialog_gen.core.errors import UsageError
from dialog_train.data.tokens import Ids, TextEncoder
from dialog_train.systems.third_tower.training import ThirdTowerClip
from dialog_train.text import TextTower, encode_ids

Blend = Literal["embedding", "weight"]
Shares = tuple[tuple[int, float], ...]
"""Indices of text towers, and the share of each one's vectors."""
NewBar = Callable[[str, int], Callable[[float], None]]
"""(what is counted, how many there are) -> to be called with the number done since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One model of a comparison."""

    label: str
    clip: Clip
    """Of a blend, the tuned model."""
    image_tower: int
    """Index into `Models.image_towers`."""
    shares: Shares
    blend: Blend | None = None
    beta: float | None = None

    def entry(self, task: Task, dataset: str, protocol: str, metrics: list[Metric], *, label_suffix: str = "") -> Entry:
        """What it achieved. With a suffix it is another measurement, and no point of the plot of a sweep."""
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
    """A checkpoint, or a baseline and a checkpoint with the blends between them.

    `variants` are in this order: the baseline, the checkpoint, the blends in the order given. `alone` are these without
    the blends.
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
        """Texts that were tokenised, and those of them that were longer than a model's context."""
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
                f"{baseline_label} and {label} have different image towers: text towers are blended only where they "
                "were tuned to one image tower."
            )
        if not one_image_tower:
            self.image_towers = [baseline, checkpoint]
        base = self._alone(baseline, baseline_label, image_tower=0)
        tuned = self._alone(checkpoint, label, image_tower=len(self.image_towers) - 1)
        self.alone, self.variants = [base, tuned], [base, tuned]
        for blend, beta in blends:
            name = _blend_label(label, blend, beta)
            shares = (*_scaled(base.shares, beta), *_scaled(tuned.shares, 1 - beta))
            if blend == "weight":
                shares = self._weight_blend(base, tuned, beta, name)
            self.variants.append(replace(tuned, label=name, shares=shares, blend=blend, beta=beta))

    def encode_images(self, pixels: Tensor, image_tower: int) -> Tensor:
        """(N, 3, H, W) of that tower's preprocessing -> unit-norm float32 (N, D) on the device.

        Raises UsageError where they are not finite.
        """
        clip = self.image_towers[image_tower]
        model = clip.model.to(self.device)
        with torch.inference_mode():
            return _finite(normalize(model.encode_image(pixels.to(self.device)).float(), dim=-1), clip.name)

    def encode_texts(self, texts: Sequence[str], advance: Callable[[float], None] = lambda texts: None) -> list[Tensor]:
        """Unit-norm vectors (N, D) of each text tower, for `text_vectors`.

        `advance` hears how many texts are done; one that is done by one tower of four is a quarter.

        Raises UsageError where a vector is not finite.
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
    def text_vectors(variant: Variant, encoded: list[Tensor]) -> Tensor:
        """(N, D) of a variant, from what `encode_texts` gave."""
        (first, share), *others = variant.shares
        if not others:
            return encoded[first]
        return normalize(share * encoded[first] + sum(share * encoded[tower] for tower, share in others), dim=-1)

    def _alone(self, clip: Clip, label: str, image_tower: int) -> Variant:
        """A model as it was loaded."""
        if not isinstance(clip, ThirdTowerClip):
            return Variant(label=label, clip=clip, image_tower=image_tower, shares=((self._text_side(clip), 1.0),))
        shares: Shares = ((self._text_side(clip, clip.third), 1 - clip.beta),) if clip.beta < 1 else ()
        if not clip.beta:
            return Variant(label=label, clip=clip, image_tower=image_tower, shares=shares)
        return Variant(
            label=_blend_label(label, "embedding", clip.beta),
            clip=clip,
            image_tower=image_tower,
            shares=((self._text_side(clip.base), clip.beta), *shares),
            blend="embedding",
            beta=clip.beta,
        )

    def _weight_blend(self, base: Variant, tuned: Variant, beta: float, name: str) -> Shares:
        """The share of a new text tower."""
        if len(base.shares) > 1 or len(tuned.shares) > 1:
            raise UsageError(f"{name}: weights are blended of one text tower and another: use --blend embedding.")
        _check_one_architecture(base.clip, tuned.clip)
        first, second = (self._texts[variant.shares[0][0]] for variant in (base, tuned))
        self._texts.append(replace(second, name=name, tower=blend_weights(first.tower, second.tower, beta)))
        return ((len(self._texts) - 1, 1.0),)

    def _text_side(self, clip: Clip, third: TextTower | None = None) -> int:
        """Index of a model's text tower, or of the third one beside it; what is there already is not added again."""
        try:
            tower = third or TextTower(clip.model)
        except TypeError as error:
            raise UsageError(f"{clip.name} cannot be evaluated: {error}.") from None
        side = _TextSide(clip, clip.name, tower.to(self.device).eval(), TextEncoder(clip.tokenizer))
        for index, known in enumerate(self._texts):
            if _tokenization(known) != _tokenization(side):
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
    """A tower with the weights beta * base + (1 - beta) * tuned (arXiv 2109.01903); the two are left as they are."""
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
    """Equal where two models turn each text into the same ids."""
    return _text_config(side.clip)[0], side.encoder.vocabulary_sha256, side.encoder.context_length


def _image_side(clip: Clip) -> Any:
    """Equal where two models give each image the same vector."""
    weights = sha256_of_weights(clip.model.visual.state_dict())
    config = [clip.config.get("vision_cfg"), bool(clip.config.get("quick_gelu")), clip.preprocess_config]
    return weights, json.loads(json.dumps(config))


def _finite(vectors: Tensor, name: str) -> Tensor:
    if not bool(vectors.isfinite().all()):
        raise UsageError(f"{name} gives vectors that are not finite: its weights are damaged.")
    return vectors
