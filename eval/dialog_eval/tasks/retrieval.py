"""Image and text retrieval on COCO captions (arXiv 1504.00325)."""

from dataclasses import dataclass
from pathlib import Path

import torch

from dialog_eval.data.coco import load_captions
from dialog_eval.data.image_index import ImageSource
from dialog_eval.data.images import ImageVectors
from dialog_eval.evaluation import dataset_name
from dialog_eval.metrics.retrieval import retrieve
from dialog_eval.models import Models, NewBar
from dialog_eval.results import Entry, Metric, Reference

KS = (1, 5, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalTask:
    """Captions ask for their image, images for any of their captions."""

    dataset: str
    protocol: str
    captions: dict[int, list[str]]
    """COCO's image id -> the captions that count."""
    source_ids: dict[int, str]
    """COCO's image id -> the source's."""

    @property
    def image_ids(self) -> list[str]:
        """The source's ids of the images, in the order of the captions."""
        return [self.source_ids[image] for image in self.captions]

    def evaluate(self, models: Models, images: ImageVectors, new_bar: NewBar) -> tuple[list[Entry], list[Reference]]:
        """R@1, R@5 and R@10 in both directions."""
        texts = [caption for captions in self.captions.values() for caption in captions]
        belongs = [place for place, captions in enumerate(self.captions.values()) for _ in captions]
        image_of = list(self.captions)
        groups = [image_of[place] for place in belongs]
        encoded = models.encode_texts(texts, new_bar("captions", len(texts)))
        entries: list[Entry] = []
        for variant in models.variants:
            found = retrieve(
                images.of(variant, self.image_ids),
                models.text_vectors(variant, encoded),
                torch.tensor(belongs),
                KS,
            )
            metrics = [Metric.of(f"image R@{k}", (found.image_ranks < k).tolist(), groups) for k in KS]
            metrics += [Metric.of(f"text R@{k}", (found.text_ranks < k).tolist()) for k in KS]
            entries.append(variant.entry("retrieval", self.dataset, self.protocol, metrics))
        return entries, []


def load_retrieval(
    captions: Path, source: ImageSource, *, captions_per_image: int | None = 5, split: str | None = None
) -> RetrievalTask:
    """The task of a captions file; `captions_per_image`: the first so many of each image count, None for all.

    `split`: see `load_captions`.

    COCO has a few images with more than five: of the 5,000 of the Karpathy test split there are 25,010 captions.

    Raises UsageError for a file that is no captions file, and for images that the source lacks or has twice.
    """
    content = load_captions(captions, split)
    chosen = {image: texts[:captions_per_image] for image, texts in content.captions.items()}
    source_ids = source.by_file_name(content.file_names) if content.file_names else source.by_number(chosen)
    which = "all captions" if captions_per_image is None else f"first {captions_per_image} captions of each image"
    count = sum(map(len, chosen.values()))
    return RetrievalTask(
        dataset=" ".join(filter(None, [dataset_name(captions), content.split])),
        protocol=f"{which}: {len(chosen)} images, {count} captions",
        captions=chosen,
        source_ids=source_ids,
    )
