"""Image and text retrieval on captions (COCO, arXiv 1504.00325), or on long descriptions."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BeforeValidator

from dialog_eval.asking.ways import parse_weight
from dialog_eval.data.captions import digest_source, read_captions
from dialog_eval.examples import draw_examples
from dialog_eval.results import Asked, Entry, Example, Examples, Metric, Reference, Shown
from dialog_eval.tasks.base import TASKS, EvaluationTask, Presentation, TaskDefinition, dataset_name, sha256_head
from dialog_gen.core.errors import UsageError
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, counter

if TYPE_CHECKING:
    from torch import Tensor

    from dialog_eval.asking.query_bank import BankSource
    from dialog_eval.data.image_index import ImageIndex
    from dialog_eval.data.images import ImageVectors
    from dialog_eval.models import Models

KS = (1, 5, 10)

CAPTIONS_HELP = (
    "Captions as published: COCO, Karpathy's dataset_coco.json and dataset_flickr30k.json, Flickr30k's .token, DOCCI's "
    ".jsonlines, or the folder of Urban1k or DCI."
)
CaptionsPerImage = Annotated[
    str,
    BeforeValidator(str),
    typer.Option(metavar="N|all", help="Use the first N captions of each image, or all."),
]
Split = Annotated[
    str | None, typer.Option(help="Split of a file with several: test (default), val, train (with restval).")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalOptions:
    """The captions file, and which of its captions are used."""

    captions: Annotated[Path, typer.Option(help=CAPTIONS_HELP)]
    split: Split = None
    captions_per_image: CaptionsPerImage = "5"
    folds: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Cut the images into N galleries of equal size, in the file's order, and search each on its own: 5 on "
            "COCO's 5,000 test images is the 1K test (1707.05612).",
        ),
    ] = 1
    query_bank: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Also measure debiased scores: subtract a candidate's mean score for its nearest queries among these "
            "captions and images. A dialogues dataset, or images with captions; never those of the test.",
        ),
    ] = None
    query_bank_weight: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Weight of what is subtracted. Default: auto, chosen on a held-out tenth of the bank.",
        ),
    ] = None


@TASKS.register("retrieval")
class Retrieval(TaskDefinition[RetrievalOptions]):
    """The task "retrieval": recall in both directions."""

    description = "Recall at 1, 5 and 10: of images by their captions, of captions by their image."
    example = (
        "dialog-eval retrieval --checkpoint draft/model --images val2014/ --captions "
        "captions_val2014.json --out results.json"
    )
    options_type = RetrievalOptions
    presentations = (
        Presentation(
            task="retrieval",
            title="Retrieval",
            headlines={"image R@1": "image R@1", "text R@1": "text R@1"},
            about="Image R@1: of 100 captions, how many find their own image first among all images; text R@1: of 100 "
            "images, how many find one of their own captions first; R@5 and R@10: among the first 5 and 10.",
        ),
    )
    in_sweep = True

    def __init__(self, options: RetrievalOptions) -> None:
        super().__init__(options)
        self._per_image = parse_captions_per_image(options.captions_per_image)
        self._weight = parse_weight("--query-bank-weight", options.query_bank_weight or "auto")
        if options.query_bank_weight is not None and options.query_bank is None:
            raise UsageError(f"--query-bank-weight {options.query_bank_weight}: nothing uses it without --query-bank.")

    def load(self, index: "ImageIndex") -> list[EvaluationTask]:
        """Reads the captions file, and opens the query bank."""
        from dialog_eval.asking.query_bank import open_bank

        given = self.options
        task = load_retrieval(
            given.captions, index, captions_per_image=self._per_image, split=given.split, folds=given.folds
        )
        bank = None if given.query_bank is None else open_bank(given.query_bank)
        return [replace(task, query_bank=bank, query_bank_weight=self._weight)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalTask:
    """Retrieves the image of each caption, and any of the captions of each image."""

    dataset: str
    protocol: str
    captions: dict[int, list[str]]
    """COCO's image id -> the captions that are used."""
    source_ids: dict[int, str]
    """COCO's image id -> its id in the image index."""
    folds: int = 1
    """The number of galleries of equal size, in the order of the captions; each is searched on its own."""
    query_bank: "BankSource | None" = None
    """The source of the queries by which scores are debiased; None: they are not."""
    query_bank_weight: float | None = None
    """None: it is chosen on held-out images of the bank."""

    @property
    def image_ids(self) -> list[str]:
        """Ids of the images in the index, in the order of the captions."""
        return [self.source_ids[image] for image in self.captions]

    def evaluate(
        self, models: "Models", images: "ImageVectors", on_progress: OnProgress
    ) -> tuple[list[Entry], list[Reference]]:
        """Computes R@1, R@5 and R@10 in both directions; with a query bank also by debiased scores."""
        from dialog_eval.asking.query_bank import QueryBank

        bank = None if self.query_bank is None else QueryBank(self.query_bank, models, on_progress)

        texts = [caption for captions in self.captions.values() for caption in captions]
        belongs = [place for place, captions in enumerate(self.captions.values()) for _ in captions]
        image_of = list(self.captions)
        groups = [image_of[place] for place in belongs]
        encoded = models.encode_texts(texts, counter(on_progress, "captions", len(texts), "captions"))
        entries, debiased = list[Entry](), list[Entry]()
        of_baseline: tuple[Tensor, Tensor] | None = None
        for variant in models.variants:
            seen, told = images.of(variant, self.image_ids), models.text_vectors(variant, encoded)
            biases: list[tuple[Tensor | None, Tensor | None, Asked | None]] = [(None, None, None)]
            if bank is not None:
                asked = bank.choose(variant, self.query_bank_weight, images.hashes)
                biases.append((*bank.biases(variant, seen, told, asked.debias_weight or 0.0), asked))
            for image_bias, text_bias, asked in biases:
                found = self._ranks(seen, told, belongs, image_bias, text_bias)
                metrics = [Metric.of(f"image R@{k}", [rank < k for rank in found[0]], groups) for k in KS]
                metrics += [Metric.of(f"text R@{k}", [rank < k for rank in found[1]]) for k in KS]
                protocol = self.protocol + (f", calibrated by nearest queries of {bank.name}" if bank and asked else "")
                entry = variant.entry("retrieval", self.dataset, protocol, metrics)
                more: dict[str, Any] = {"asked": asked}
                if variant is models.tuned and asked is None:
                    values = [one.metrics[0].values for one in (entry, entries[0])]
                    vectors = [(seen, told), of_baseline or (seen, told)]
                    more["examples"] = self._examples(entries[0].label, texts, belongs, values, vectors)
                (debiased if asked else entries).append(entry.model_copy(update=more))
            of_baseline = of_baseline or (seen, told)
        return [*entries, *debiased], []

    def _ranks(
        self,
        seen: "Tensor",
        told: "Tensor",
        belongs: Sequence[int],
        image_bias: "Tensor | None",
        text_bias: "Tensor | None",
    ) -> tuple[list[int], list[int]]:
        """The hit ranks, within each fold, of the captions' images (captions,) and the images' captions (images,)."""
        import torch

        from dialog_eval.metrics.retrieval import retrieve

        place_of, size = torch.tensor(belongs), len(self.captions) // self.folds
        found: tuple[list[int], list[int]] = [], []
        for first in range(0, len(self.captions), size):
            # Captions lie in the order of their images.
            of_images = slice(first, first + size)
            of_captions = slice(*(bisect_left(belongs, end) for end in (first, first + size)))
            fold = retrieve(
                seen[of_images],
                told[of_captions],
                place_of[of_captions] - first,
                KS,
                image_bias=None if image_bias is None else image_bias[of_images],
                text_bias=None if text_bias is None else text_bias[of_captions],
            )
            found[0].extend(fold.image_ranks.tolist())
            found[1].extend(fold.text_ranks.tolist())
        return found

    def _examples(
        self,
        baseline: str,
        texts: Sequence[str],
        belongs: Sequence[int],
        values: Sequence[Sequence[float]],
        vectors: "Sequence[tuple[Tensor, Tensor]]",
    ) -> Examples:
        """Captions whose image a model finds and the baseline does not, and the other way round.

        `values` (captions,) and `vectors` (of images and of captions) are the model's and the baseline's.
        """
        image_ids, size = self.image_ids, len(self.captions) // self.folds

        def best(place: int, seen: "Tensor", told: "Tensor") -> int:
            start = belongs[place] // size * size
            return start + int((seen[start : start + size] @ told[place]).argmax())

        def build(places: Sequence[int]) -> list[Example]:
            first, second = ([best(place, *of_model) for place in places] for of_model in vectors)
            return [
                Example(
                    item=Shown(text=texts[place]),
                    right=Shown(image_id=image_ids[belongs[place]]),
                    answer=Shown(image_id=image_ids[own]),
                    baseline_answer=Shown(image_id=image_ids[other]),
                )
                for place, own, other in zip(places, first, second, strict=True)
            ]

        return draw_examples(f"image R@{KS[0]}", baseline, values[0], values[1], build)


def load_retrieval(
    captions: Path,
    index: "ImageIndex",
    *,
    captions_per_image: int | None = 5,
    split: str | None = None,
    folds: int = 1,
) -> RetrievalTask:
    """Builds the task of a captions file.

    `captions_per_image`: use only the first captions of each image, up to this number; None for all. COCO has a few
    images with more than five: the 5,000 images of the Karpathy test split have 25,010 captions. `split`: as for
    `read_captions`. `folds`: as in `RetrievalTask`.

    Raises UsageError for a file that is not a captions file, for images that the index lacks or has twice, for one that
    the file lists twice, for images that cannot be cut into as many folds, and for one image, and galleries of one,
    in which every search would find it.
    """
    content = read_captions(captions, split)
    chosen = {image: texts[:captions_per_image] for image, texts in content.captions.items()}
    names = content.file_names
    if folds < 1 or len(chosen) % folds:
        raise UsageError(
            f"--folds {folds}: {count_of(len(chosen), 'image')} cannot be cut into so many galleries of equal size; "
            "give a number that divides them."
        )
    if len(chosen) == 1:
        raise UsageError(f"{captions} has captions of one image: several are compared.")
    if len(chosen) == folds:
        raise UsageError(
            f"--folds {folds}: each gallery has one image only, which every search would find; give fewer."
        )
    source_ids = index.by_file_name(names, each_once=True) if names else index.by_number(chosen)
    which = "all captions" if captions_per_image is None else f"first {captions_per_image} captions of each image"
    count = sum(map(len, chosen.values()))
    folder = captions.is_dir()
    name = f"{captions.absolute().name} {sha256_head(digest_source(content))}" if folder else dataset_name(captions)
    return RetrievalTask(
        dataset=" ".join(filter(None, [name, content.split])),
        protocol=f"{which}: {len(chosen)} images, {count} captions"
        + (f", {folds} folds of {count_of(len(chosen) // folds, 'image')}" if folds > 1 else ""),
        captions=chosen,
        source_ids=source_ids,
        folds=folds,
    )


def parse_captions_per_image(text: str) -> int | None:
    """Parses a number of captions; None means all. Raises UsageError for other texts."""
    if text == "all":
        return None
    if not text.isdecimal() or not int(text):
        raise UsageError(f"--captions-per-image {text}: give a number from 1 on, or all.")
    return int(text)
