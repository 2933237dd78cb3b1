"""Prepares what ways of asking need: the prior, reference images, and weights chosen on held-out dialogues."""

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dialog_eval.asking.choice import Choice, HeldOut, choose_weights, held_out_questions
from dialog_eval.asking.debias import null_images
from dialog_eval.asking.scores import Asking, Prior
from dialog_eval.asking.ways import AskingOptions, Calibration, Way, Weights
from dialog_eval.data.dialogues import HELD_OUT_SHARE, Picture, is_held_out, pictures, short_name
from dialog_eval.data.images import ImageVectors, embed_stream, told_if_measured
from dialog_eval.results import Asked
from dialog_gen.core.errors import UsageError
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, counter
from dialog_gen.dataset.folder import DatasetFolder, open_dataset
from dialog_gen.sources.base import SourceImage
from dialog_train.asking.prior import AnswerPrior
from dialog_train.asking.questions import answer_key
from dialog_train.asking.sentences import RULES, Sentences

if TYPE_CHECKING:
    from torch import Tensor

    from dialog_eval.models import Models

HELD_OUT_IMAGES = 1000
REFERENCE_IMAGES = 4096

_WAY_OUT = "Give more dialogues, others with --held-out, or the weights as numbers."


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Ways of asking, ready to be used."""

    asking: Asking
    weights: list[list[Weights]]
    """(ways, variants)"""
    asked: list[list[Asked | None]]
    """(ways, variants): for the results; None for a way without weights."""
    prior_name: str | None
    """The prior, for the results; None if no way has it."""
    prior_note: str | None
    """For the results: that images of the evaluation are among those that the prior is counted on; None if none is."""
    sentences: str | None
    """Whose sentences statements are, for the results; None for rules only."""


def prepare(
    options: AskingOptions,
    text_format: str,
    models: "Models",
    images: ImageVectors,
    image_ids: Sequence[str],
    on_progress: OnProgress,
) -> Prepared:
    """Counts the prior, encodes reference images, and chooses the weights that are not given.

    `image_ids`: the images of the evaluation; they are the references of "nearest" if there are no dialogues.

    Raises UsageError for dialogues that cannot be read, have no images where they are needed, or none but the held-out
    ones, and for held-out ones that have fewer than two different answers.
    """
    held_out = _HeldOut(options) if options.chooses else None
    pairs: list[tuple[str, str, str]] = []
    vectors = None
    if held_out is not None:
        vectors = _embed(models, held_out.pictures(), "held-out images", on_progress, pairs)
        _check_answers(held_out.given, pairs)
        held_out.check_others(options)
    uses = held_out.is_other if held_out is not None else lambda sha256: True
    prior, prior_name, prior_note = _prior(options, models, uses, images.hashes)
    sentences = _sentences(options, uses)
    asking = Asking(
        text_format=text_format,
        ways=options.ways,
        references=_references(options, models, images, image_ids, uses, on_progress),
        prior=prior,
        sentences=sentences,
    )
    if held_out is None or vectors is None:
        weights = [
            [Weights(debias=debias or 0.0, prior=prior or 0.0)] * len(models.variants)
            for debias, prior in options.weights
        ]
        return Prepared(
            asking=asking,
            weights=weights,
            asked=[[_asked(way, one, None) for one in some] for way, some in zip(options.ways, weights, strict=True)],
            prior_name=prior_name,
            prior_note=prior_note,
            sentences=_told(options, sentences),
        )
    counted = prior if isinstance(prior, AnswerPrior) else AnswerPrior.of_pairs((q, a) for _, q, a in pairs)
    questions, right = held_out_questions(pairs, counted.answers)
    choices = choose_weights(
        models,
        HeldOut(questions=questions, right=right, images=vectors),
        asking,
        options.weights,
        advance=counter(on_progress, "held-out questions", len(questions), "questions"),
    )
    of_images = count_of(len(vectors.rows), "image", grouped=True)
    told = f"{count_of(len(questions), 'question', grouped=True)} about {of_images} of {held_out.name}"
    told += told_if_measured(vectors.hashes, images.hashes)
    return Prepared(
        asking=asking,
        weights=[[choice.weights for choice in of_way] for of_way in choices],
        asked=[
            [_asked(way, choice.weights, told if len(choice.tried) > 1 else None, choice) for choice in of_way]
            for way, of_way in zip(options.ways, choices, strict=True)
        ],
        prior_name=prior_name,
        prior_note=prior_note,
        sentences=_told(options, sentences),
    )


class _HeldOut:
    """The dialogues on which weights are chosen: a dataset of their own, or a tenth of the images of another."""

    def __init__(self, options: AskingOptions) -> None:
        self._own = options.held_out is not None
        location = options.held_out or options.dialogues or ""
        self.given = f"--held-out {location}" if self._own else f"the held-out images of --dialogues {location}"
        self._dataset: DatasetFolder = open_dataset(location)
        share = "" if self._own else f", from the {HELD_OUT_SHARE:.0%} of images that are held out"
        self.name = f"{short_name(location)}{share}"
        self._seen: set[str] = set()

    def pictures(self) -> Iterator[Picture]:
        uses = (lambda sha256: True) if self._own else is_held_out
        for picture in pictures(self._dataset, most=HELD_OUT_IMAGES, uses=uses):
            self._seen.add(picture.image.image_id)
            yield picture
        if not self._seen and self._own:
            raise UsageError(f"{self.given} has no dialogue about one image. {_WAY_OUT}")
        if not self._seen:
            raise UsageError(
                f"--dialogues {self._dataset.location} has too few images to hold some out, so that weights can be "
                f"chosen on them. {_WAY_OUT}"
            )

    def is_other(self, image_sha256: str) -> bool:
        """Whether an image is not held out."""
        return image_sha256 not in self._seen if self._own else not is_held_out(image_sha256)

    def check_others(self, options: AskingOptions) -> None:
        """Raises UsageError if all images are held out of dialogues that the prior or debias needs."""
        counted = options.prior_model is None and any(way.prior for way in options.ways)
        if options.dialogues is None or not (counted or "nearest" in options.calibrations):
            return
        rows = open_dataset(options.dialogues).rows(["image_sha256"])
        if not any(self.is_other(row["image_sha256"]) for row in rows):
            held = self.given if self._own else "the held-out ones"
            raise UsageError(f"--dialogues {options.dialogues} has no images besides {held}. {_WAY_OUT}")


def _check_answers(given: str, pairs: Sequence[tuple[str, str, str]]) -> None:
    """Raises UsageError if the answers of (image id, question, answer) are not at least two."""
    answers = {answer_key(answer) for _, _, answer in pairs}
    if not answers:
        raise UsageError(f"{given}: the gates keep no question and answer. {_WAY_OUT}")
    if len(answers) == 1:
        raise UsageError(f"{given}: every answer is {answers.pop()!r}, so all weights answer alike. {_WAY_OUT}")


def _embed(
    models: "Models",
    chosen: Iterator[Picture],
    stage: str,
    on_progress: OnProgress,
    pairs: list[tuple[str, str, str]],
) -> ImageVectors:
    """Encodes pictures, and adds (image id, question, answer) of their dialogues to `pairs`."""

    def stream() -> Iterator[SourceImage]:
        for picture in chosen:
            pairs.extend((picture.image.image_id, *pair) for pair in picture.pairs)
            yield picture.image

    return embed_stream(models, stream(), stage, None, on_progress)


def _prior(
    options: AskingOptions, models: "Models", uses: Callable[[str], bool], measured: Set[str]
) -> tuple[Prior | None, str | None, str | None]:
    """The prior, its name, and a note if it is counted on `measured` images."""
    if not any(way.prior for way in options.ways):
        return None, None, None
    if options.prior_model is not None:
        from dialog_eval.asking.text_prior import TextPrior

        model = TextPrior(options.prior_model, models.device)
        return model, f"prior of {short_name(str(options.prior_model))} {model.sha256[:6]}", None
    both: set[str] = set()

    def counts(sha256: str) -> bool:
        if used := uses(sha256):
            both.update({sha256} & measured)
        return used

    name = short_name(options.dialogues or "")
    counted = AnswerPrior.of_dataset(options.dialogues or "", uses=counts)
    note = f"prior counted on images of {name}{told_if_measured(both, measured)}" if both else None
    return counted, f"prior of {name} {counted.sha256[:6]}", note


def _sentences(options: AskingOptions, uses: Callable[[str], bool]) -> Sentences:
    """The sentences of the dialogues, for statements. Raises UsageError for dialogues that nothing uses."""
    stated = [way for way in options.ways if way.text == "statement"]
    if not stated or options.dialogues is None:
        return RULES
    found = Sentences.of_dataset(options.dialogues, uses=uses)
    if not found and not any(way.prior or way.debias for way in options.ways):
        raise UsageError(
            f"--dialogues {options.dialogues} has no statements, and no way of asking has prior or debias, so nothing "
            "uses it."
        )
    return found


def _told(options: AskingOptions, sentences: Sentences) -> str | None:
    """Whose sentences they are, such as "cc3m-dialogues 1a2b3c"."""
    return f"{short_name(options.dialogues or '')} {sentences.sha256[:6]}" if sentences else None


def _references(
    options: AskingOptions,
    models: "Models",
    images: ImageVectors,
    image_ids: Sequence[str],
    uses: Callable[[str], bool],
    on_progress: OnProgress,
) -> "dict[Calibration, list[Tensor]]":
    found: dict[Calibration, list[Tensor]] = {}
    if "null-image" in options.calibrations:
        found["null-image"] = null_images(models)
    if "nearest" in options.calibrations and options.dialogues is None:
        rows = [images.rows[image_id] for image_id in dict.fromkeys(image_ids)][:REFERENCE_IMAGES]
        found["nearest"] = [vectors[rows] for vectors in images.vectors]
    elif "nearest" in options.calibrations and options.dialogues is not None:
        others = pictures(open_dataset(options.dialogues), most=REFERENCE_IMAGES, uses=uses)
        found["nearest"] = _embed(models, others, "reference images", on_progress, []).vectors
    return found


def _asked(way: Way, weights: Weights, chosen_on: str | None, choice: Choice | None = None) -> Asked | None:
    if not (way.debias or way.prior):
        return None
    tried = [
        {"debias_weight": one.debias, "prior_weight": one.prior, "accuracy": accuracy}
        for one, accuracy in (choice.tried if choice is not None and chosen_on else [])
    ]
    return Asked(
        way=way.name,
        debias_weight=weights.debias if way.debias else None,
        prior_weight=weights.prior if way.prior else None,
        chosen_on=chosen_on,
        tried=tried,
    )
