"""COCO's, Karpathy's and VQA's files in the published layouts, with a handful of images."""

import io
import json
import zipfile
from typing import Any

from PIL import Image

_INFO = {"description": "made for a test", "year": 2014, "version": "1.0"}
_LICENSE = {"id": 1, "name": "CC", "url": "http://creativecommons.org/licenses/by/2.0/"}
COCO_IDS = {42: "test", 73: "restval", 133: "test", 581929: "val", 391895: "test", 400044: "val"}
"""COCO's ids of validation images -> their split of Karpathy's."""
ABSTRACT_IDS = (20000, 20001, 29999)


def photo(number: int, kind: str) -> bytes:
    """A small picture; another number, other bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), (number % 251, number // 251 % 251, 7)).save(buffer, kind)
    return buffer.getvalue()


def coco_name(number: int) -> str:
    return f"COCO_val2014_{number:012d}.jpg"


def abstract_name(number: int) -> str:
    return f"abstract_v002_val2015_{number:012d}.png"


def captions_of(number: int) -> list[str]:
    """One image has six, as some of COCO's have."""
    return [f"caption {n} of {number} ." for n in range(6 if number == 133 else 5)]


def captions_val2014() -> dict[str, Any]:
    listed = [
        {
            "license": 1,
            "file_name": coco_name(number),
            "coco_url": f"http://images.cocodataset.org/val2014/{coco_name(number)}",
            "height": 32,
            "width": 48,
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": "http://farm9.staticflickr.com/8035/8024364858_9c41dc1666_z.jpg",
            "id": number,
        }
        for number in COCO_IDS
    ]
    annotations = [
        {"image_id": number, "id": 10 * number + n, "caption": text}
        for number in COCO_IDS
        for n, text in enumerate(captions_of(number))
    ]
    return {"info": _INFO, "images": listed, "licenses": [_LICENSE], "annotations": annotations}


def dataset_coco() -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    for place, (number, split) in enumerate(COCO_IDS.items()):
        sentences = [
            {"tokens": text.rstrip(" .").split(), "raw": text, "imgid": place, "sentid": 10 * number + n}
            for n, text in enumerate(captions_of(number))
        ]
        images.append(
            {
                "filepath": "val2014",
                "sentids": [sentence["sentid"] for sentence in sentences],
                "filename": coco_name(number),
                "imgid": place,
                "split": split,
                "sentences": sentences,
                "cocoid": number,
            }
        )
    return {"images": images, "dataset": "coco"}


def vqa_files(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """MultipleChoice questions and annotations, three an image; `kind`: mscoco or abstract_v002."""
    numbers, subtype = (tuple(COCO_IDS), "val2014") if kind == "mscoco" else (ABSTRACT_IDS, "val2015")
    head = {"info": _INFO, "data_type": kind, "data_subtype": subtype, "license": _LICENSE}
    asked: list[dict[str, Any]] = []
    annotated: list[dict[str, Any]] = []
    for number in numbers:
        for n, (question_type, answer_type, answer) in enumerate(
            [("is the", "yes/no", "yes"), ("how many", "number", "2"), ("what color is", "other", "red")]
        ):
            ids = {"image_id": number, "question_id": 10 * number + n}
            choices = [answer, *(f"choice {c}" for c in range(17))]
            asked.append({"question": f"{question_type} {number}?", "multiple_choices": choices, **ids})
            answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": a} for a in range(1, 11)]
            kinds = {"question_type": question_type, "answer_type": answer_type, "multiple_choice_answer": answer}
            annotated.append({**kinds, "answers": answers, **ids})
    task = {"task_type": "Multiple-Choice", "num_choices": 18}
    return {**head, **task, "questions": asked}, {**head, "annotations": annotated}


def of_v2(part: dict[str, Any], key: str) -> dict[str, Any]:
    """The same questions or annotations as VQA v2 has them: other ids, and no choices."""
    records = [{**one, "question_id": one["image_id"] * 1000 + n % 3} for n, one in enumerate(part[key])]
    kept = [{name: value for name, value in one.items() if name != "multiple_choices"} for one in records]
    return {name: value for name, value in part.items() if name != "num_choices"} | {key: kept}


def zipped(files: dict[str, Any]) -> bytes:
    """`files`: name -> bytes, or what becomes JSON."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content if isinstance(content, bytes) else json.dumps(content))
    return buffer.getvalue()


def archives() -> dict[str, bytes]:
    """The validation archives: the path that their URLs have -> content."""
    found = {
        "zips/val2014.zip": zipped({f"val2014/{coco_name(n)}": photo(n, "JPEG") for n in COCO_IDS}),
        "annotations/annotations_trainval2014.zip": zipped({"annotations/captions_val2014.json": captions_val2014()}),
        "people/karpathy/deepimagesent/caption_datasets.zip": zipped({"dataset_coco.json": dataset_coco()}),
        "cvmlp/vqa/abstract_v002/scene_img/scene_img_abstract_v002_val2015.zip": zipped(
            {abstract_name(n): photo(n, "PNG") for n in ABSTRACT_IDS}
        ),
    }
    for kind, subtype in (("mscoco", "val2014"), ("abstract_v002", "val2015")):
        questions, annotations = vqa_files(kind)
        folder = f"cvmlp/vqa/{kind}/vqa"
        found[f"{folder}/Questions_Val_{kind}.zip"] = zipped(
            {
                f"MultipleChoice_{kind}_{subtype}_questions.json": questions,
                f"OpenEnded_{kind}_{subtype}_questions.json": questions,
            }
        )
        found[f"{folder}/Annotations_Val_{kind}.zip"] = zipped({f"{kind}_{subtype}_annotations.json": annotations})
    questions, annotations = vqa_files("mscoco")
    folder = "cvmlp/vqa/mscoco/vqa/v2"
    found[f"{folder}_Questions_Val_mscoco.zip"] = zipped(
        {"v2_OpenEnded_mscoco_val2014_questions.json": of_v2(questions, "questions")}
    )
    for split in ("Train", "Val"):
        name = f"v2_mscoco_{split.lower()}2014_annotations.json"
        found[f"{folder}_Annotations_{split}_mscoco.zip"] = zipped({name: of_v2(annotations, "annotations")})
    return found
