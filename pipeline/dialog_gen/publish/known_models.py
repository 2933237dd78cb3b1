"""What is known of the generators: what they were trained on, and whose terms their words come under."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A family of generators."""

    names: tuple[str, ...]
    """What its models' names hold, in lower case."""
    trained_on: str
    terms: str


KNOWN_MODELS = (
    KnownModel(
        ("llava-1.5", "llava-v1.5"),
        "LLaVA-1.5 was tuned on 665 K conversations that include VQAv2, GQA, OK-VQA, A-OKVQA, OCR-VQA, TextCaps, "
        "RefCOCO and Visual Genome, most of them about COCO and Visual Genome images, after 558 K image-text pairs of "
        "LAION, CC and SBU (arXiv:2310.03744). Dialogues about those images may repeat what it was taught, and "
        "results on these benchmarks, or on others with COCO images, are not those of a model that never saw them.",
        "LLaVA-1.5 rests on Vicuna 1.5 (Llama 2 Community License) and on instructions that GPT-4 wrote (OpenAI's "
        "terms of use).",
    ),
    KnownModel(
        ("blip2", "blip-2"),
        "BLIP-2 was pre-trained on 129 M images: COCO, Visual Genome, CC3M, CC12M, SBU and 115 M of LAION-400M "
        "(arXiv:2301.12597). What it says of images from those sets may repeat the captions it was taught.",
        "BLIP-2 rests on OPT (Meta's OPT licence, for research that is not commercial) or Flan-T5 (Apache-2.0).",
    ),
    KnownModel(
        ("shapes-",),
        "This generator was trained on scenes of the embedded world `shapes`, on none of its test split.",
        "It comes with dialog-gen, under Apache-2.0.",
    ),
)


def known_model(name: str) -> KnownModel | None:
    """The family that a model belongs to by its name; None where nothing is recorded."""
    # The generators of the embedded world have the names of what they are built like.
    by_start = [family for family in KNOWN_MODELS if name.lower().startswith(family.names)]
    holding = [family for family in KNOWN_MODELS if any(part in name.lower() for part in family.names)]
    return next(iter(by_start + holding), None)
