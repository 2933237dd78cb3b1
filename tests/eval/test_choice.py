"""`dialog-eval choice` on files of the published forms, against counts by hand with open_clip's own methods."""

import csv
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cli import Cli
from helpers.evaluation import ReferenceModel, image_path, write_split
from PIL import Image
from torch import Tensor

from dialog_eval import evaluate, write_table
from dialog_eval.data.choices.aro import NOT_AVERAGED, with_shuffles
from dialog_eval.data.choices.base import BENCHMARKS, files_of
from dialog_eval.results import Entry, Results
from dialog_gen.core.errors import UsageError
from dialog_gen.shapes.files import ShapesSubset

SUBSET = ShapesSubset(split="test", seed=1, limit=60, shard_size=32)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_split(tmp_path_factory.mktemp("world"), SUBSET)


@pytest.fixture(scope="module")
def models(clips: tuple[Path, Path]) -> list[ReferenceModel]:
    return [ReferenceModel(folder) for folder in clips]


def measured(clips: tuple[Path, Path], images: Path, benchmark: str, *files: Path, **options: Any) -> Results:
    return evaluate(
        "choice", checkpoint=clips[1], baseline=clips[0], images=images, benchmark=benchmark, files=list(files),
        device="cpu", **options,
    )  # fmt: skip


def entries(results: Results) -> dict[str, Entry]:
    return {entry.label: entry for entry in results.entries}


def figures(entry: Entry) -> dict[str, float]:
    return {metric.name: metric.mean for metric in entry.metrics}


def image_of(world: Path, name: str) -> Path:
    return world / "images" / Path(name).with_suffix(".png")


def scores(model: ReferenceModel, images: list[Path], texts: list[str]) -> Tensor:
    return model.images(images) @ model.texts(texts).T


def share(passed: list[bool]) -> Any:
    return pytest.approx(sum(passed) / len(passed), abs=1e-12)


def test_sugarcrepe(world: Path, clips: tuple[Path, Path], models: list[ReferenceModel]) -> None:
    folder = world / "choices" / "sugarcrepe"
    found = entries(measured(clips, world / "images", "sugarcrepe", folder))
    assert list(found) == ["base", "base, blind", "tuned", "tuned, blind"]
    for model, label in zip(models, ("base", "tuned"), strict=True):
        passed: dict[str, list[bool]] = {}
        for path in sorted(folder.iterdir()):
            for record in json.loads(path.read_text()).values():
                texts = [record["caption"], record["negative_caption"]]
                ((right, wrong),) = scores(model, [image_of(world, record["filename"])], texts).tolist()
                passed.setdefault(path.stem, []).append(right > wrong)
        told = figures(found[label])
        assert told["accuracy"] == share([one for some in passed.values() for one in some])
        for part, some in passed.items():
            assert told[f"accuracy, {part}"] == share(some)
        assert told["mean over parts"] == pytest.approx(sum(sum(s) / len(s) for s in passed.values()) / len(passed))
        assert len(passed) == 6
    assert figures(found["base"]) != figures(found["tuned"])


def test_blind_sees_the_mean_image(world: Path, clips: tuple[Path, Path], models: list[ReferenceModel]) -> None:
    file = world / "choices" / "sugarcrepe" / "replace_att.json"
    records = list(json.loads(file.read_text()).values())
    vectors = models[0].images([image_of(world, name) for name in dict.fromkeys(r["filename"] for r in records)])
    texts = [models[0].texts([record["caption"], record["negative_caption"]]) @ vectors.mean(0) for record in records]
    results = measured(clips, world / "images", "sugarcrepe", file)
    assert figures(entries(results)["base, blind"])["accuracy"] == share([bool(two[0] > two[1]) for two in texts])
    assert [(r.name, r.metric, r.value) for r in results.references] == [("chance", "accuracy", 0.5)]


def test_sugarcrepe_pp(world: Path, clips: tuple[Path, Path], models: list[ReferenceModel]) -> None:
    folder = world / "choices" / "sugarcrepe-pp"
    results = measured(clips, world / "images", "sugarcrepe-pp", folder / "swap_att.json", folder / "add_obj.json")
    image_text, text_only = [], []
    for path in (folder / "add_obj.json", folder / "swap_att.json"):
        for record in json.loads(path.read_text()):
            texts = models[1].texts([record[key] for key in ("caption", "caption2", "negative_caption")])
            image = models[1].images([image_of(world, record["filename"])])[0]
            first, second, negative = (texts @ image).tolist()
            image_text.append(first > negative and second > negative)
            alike = texts @ texts.T
            text_only.append(bool(alike[0, 1] > alike[0, 2] and alike[0, 1] > alike[1, 2]))
    told = figures(entries(results)["tuned"])
    assert (told["accuracy"], told["texts alone"]) == (share(image_text), share(text_only))
    assert {r.metric: r.value for r in results.references} == {
        "accuracy": pytest.approx(1 / 3),
        "texts alone": pytest.approx(1 / 3),
    }


def test_valse_counts_only_valid_items(
    world: Path, clips: tuple[Path, Path], models: list[ReferenceModel], tmp_path: Path
) -> None:
    content = json.loads((world / "choices" / "valse" / "existence.json").read_text())
    for number, record in enumerate(content.values()):
        record["mturk"]["caption"] = number % 4
        if number % 5 == 0:
            record["caption"] = [record["caption"]]  # as in some of the published files
    (tmp_path / "existence.json").write_text(json.dumps(content))
    passed = []
    for record in content.values():
        if record["mturk"]["caption"] >= 2:
            caption = record["caption"][0] if isinstance(record["caption"], list) else record["caption"]
            ((right, wrong),) = scores(models[0], [image_of(world, record["image_file"])], [caption, record["foil"]])
            passed.append(bool(right > wrong))
    (metric,) = entries(measured(clips, world / "images", "valse", tmp_path))["base"].metrics
    assert (len(metric.values), metric.mean) == (30, share(passed))


def test_valse_tells_of_items_without_a_caption(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = {"image_file": "x", "caption": "a", "foil": "b", "mturk": {"caption": 3}}
    records = {"1": record, "2": {**record, "caption": []}, "3": {**record, "caption": [], "mturk": {"caption": 1}}}
    (tmp_path / "v.json").write_text(json.dumps(records))
    assert len(BENCHMARKS.get("valse").read([tmp_path / "v.json"])) == 1
    assert caplog.messages == [f"{tmp_path / 'v.json'}: left out 1 valid item without a caption"]


def test_a_file_that_is_given_twice_counts_once(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world / "choices")
    (tmp_path / "link.json").symlink_to(world / "choices" / "sugarcrepe" / "add_att.json")
    given = [Path("sugarcrepe"), world / "choices" / "sugarcrepe", Path("sugarcrepe/../sugarcrepe/add_att.json")]
    found = files_of(BENCHMARKS.get("sugarcrepe"), [*given, tmp_path / "link.json"])
    assert found == sorted(Path("sugarcrepe").glob("*.json"))


def test_parts_have_names_of_their_own(world: Path, clips: tuple[Path, Path], tmp_path: Path) -> None:
    image_id = next((world / "images").rglob("*.png")).relative_to(world / "images").as_posix()
    texts = [["a star", "a circle"], ["a circle", "a star"], ["a circle", "a star"]]
    items = [
        {"image_id": image_id, "captions": both, "kind": kind}
        for both, kind in zip(texts, ("rest", "", "rest (2)"), strict=True)
    ]
    (tmp_path / "c.json").write_text(json.dumps(items))
    metrics = entries(measured(clips, world / "images", "captions", tmp_path / "c.json"))["base"].metrics
    told = {metric.name: metric.values for metric in metrics if metric.name.startswith("accuracy, ")}
    (one,), (other,), (again,) = (told[f"accuracy, {name}"] for name in ("rest", "rest (3)", "rest (2)"))
    assert one != other == again


def test_negbench(world: Path, clips: tuple[Path, Path], models: list[ReferenceModel], tmp_path: Path) -> None:
    rows = list(csv.DictReader((world / "choices" / "negbench" / "mcq.csv").open()))
    for number, row in enumerate(rows):  # The right answer stands in any place.
        place = number % 4
        row["caption_0"], row[f"caption_{place}"] = row[f"caption_{place}"], row["caption_0"]
        row["correct_answer"] = str(place)
        row["image_path"] = "data/coco/" + row["image_path"].rpartition("/")[2]
    file = tmp_path / "COCO_val_mcq.csv"
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    images = {path.stem: path for path in (world / "images").rglob("*.png")}
    passed: dict[str, list[bool]] = {}
    for row in rows:
        texts = [row[f"caption_{n}"] for n in range(4)]
        best = scores(models[1], [images[Path(row["image_path"]).stem]], texts).argmax()
        passed.setdefault(row["correct_answer_template"], []).append(int(best) == int(row["correct_answer"]))
    told = figures(entries(measured(clips, world / "images", "negbench-mcq", file))["tuned"])
    assert told == {
        "accuracy": share([one for some in passed.values() for one in some]),
        **{f"accuracy, {part}": share(some) for part, some in passed.items()},
    }
    assert set(passed) == {"positive", "negative", "hybrid"}


def test_a_place_without_a_caption_keeps_the_others_places(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_text("image_path,caption_0,caption_1,caption_2,caption_3,correct_answer\r\nx.jpg,a,,c,d,2\r\n")
    (item,) = BENCHMARKS.get("negbench-mcq", where="").read([file])
    assert item.texts == ("c", "a", "d")


def test_lines_of_json_end_where_json_lines_do(tmp_path: Path) -> None:
    """A text may have other line separators in it."""
    record = {"image_0": "a", "image_1": "b", "caption_0": "one\u2028two\x85", "caption_1": "c"}
    file = tmp_path / "examples.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + f"{json.dumps(record, ensure_ascii=False)}\r\n".encode() * 2)
    items = BENCHMARKS.get("winoground", where="").read([file])
    assert [item.texts for item in items] == [("one\u2028two\x85", "c")] * 2


def test_winoground(world: Path, clips: tuple[Path, Path], models: list[ReferenceModel]) -> None:
    file = world / "choices" / "winoground" / "examples.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    results = measured(clips, world / "images", "winoground", file)
    found = entries(results)
    assert list(found) == ["base", "tuned"]
    for model, label in zip(models, found, strict=True):
        text, image = [], []
        for record in records:
            names = [image_of(world, record[key]) for key in ("image_0", "image_1")]
            (i0c0, i0c1), (i1c0, i1c1) = scores(model, names, [record["caption_0"], record["caption_1"]]).tolist()
            text.append(i0c0 > i0c1 and i1c1 > i1c0)
            image.append(i0c0 > i1c0 and i1c1 > i0c1)
        told = figures(found[label])
        assert (told["text score"], told["image score"]) == (share(text), share(image))
        assert told["group score"] == share([one and other for one, other in zip(text, image, strict=True)])
    assert {r.metric: round(r.value, 4) for r in results.references} == {
        "group score": 0.1667, "text score": 0.25, "image score": 0.25,
    }  # fmt: skip


def test_mmvp(world: Path, clips: tuple[Path, Path], models: list[ReferenceModel], tmp_path: Path) -> None:
    statements = ["a red star", "a blue circle", "two objects", "one object", "a white background", "a pink background"]
    types = ["Color and Appearance", "Quantity and Count", "Texts"]
    lines = ["lang,type,statement"]  # The names of the columns do not matter, as in the published code.
    paths = []
    for number, statement in enumerate(statements, 1):
        path = tmp_path / "MLLM_VLM Images" / types[(number - 1) // 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(image_path(world, SUBSET, number)) as image:
            image.convert("RGB").save(path)
        lines.append(f'{number},{path.parent.name},"{statement}"')
        paths.append(path)
    (tmp_path / "Questions.csv").write_text("\n".join(lines))
    for model, label in zip(models, ("base", "tuned"), strict=True):
        found = scores(model, paths, [f"a photo of {statement}" for statement in statements])
        passed = [bool(found[i, i] > found[i + 1, i] and found[i + 1, i + 1] > found[i, i + 1]) for i in (0, 2, 4)]
        results = measured(clips, tmp_path / "MLLM_VLM Images", "mmvp-vlm", tmp_path)
        told = figures(entries(results)[label])
        assert told["pair accuracy"] == told["mean over parts"] == share(passed)
        assert [told[f"pair accuracy, {name}"] for name in types] == [float(one) for one in passed]


def test_mmvp_of_the_world(world: Path, clips: tuple[Path, Path], models: list[ReferenceModel]) -> None:
    folder = world / "choices" / "mmvp-vlm"
    rows = list(csv.reader((folder / "Questions.csv").open()))[1:]
    paths = [folder / "MLLM_VLM Images" / kind / f"{number}.jpg" for number, kind, _ in rows]
    results = measured(clips, folder / "MLLM_VLM Images", "mmvp-vlm", folder)
    for model, label in zip(models, ("base", "tuned"), strict=True):
        found = scores(model, paths, [f"a photo of {statement}" for _, _, statement in rows])
        passed = defaultdict[str, list[bool]](list)
        for i in range(0, len(rows), 2):
            right = found[i, i] > found[i + 1, i] and found[i + 1, i + 1] > found[i, i + 1]
            passed[rows[i][1]].append(bool(right))
        told = figures(entries(results)[label])
        assert len(passed) == 4
        assert {name: told[f"pair accuracy, {name}"] for name in passed} == {k: share(v) for k, v in passed.items()}


def test_aro_cuts_the_image(
    world: Path, clips: tuple[Path, Path], models: list[ReferenceModel], tmp_path: Path
) -> None:
    records = json.loads((world / "choices" / "aro" / "visual_genome_relation.json").read_text())[:40]
    rng = torch.Generator().manual_seed(0)
    passed: dict[str, list[bool]] = {}
    for number, record in enumerate(records):
        x, y, w, h = (torch.rand(4, generator=rng) * 30 + torch.tensor([0, 0, 4, 4])).int().tolist()
        record |= {"bbox_x": x, "bbox_y": y, "bbox_w": w, "bbox_h": h}
        record["relation_name"] = ("near", "above", "under")[number % 3]
        with Image.open(image_of(world, record["image_path"])) as image:
            image.convert("RGB").crop((x, y, x + w, y + h)).save(tmp_path / f"{number}.png")
        texts = [record["true_caption"], record["false_caption"]]
        ((right, wrong),) = scores(models[1], [tmp_path / f"{number}.png"], texts).tolist()
        passed.setdefault(record["relation_name"], []).append(right > wrong)
    file = tmp_path / "visual_genome_relation.json"
    file.write_text(json.dumps(records))
    told = figures(entries(measured(clips, world / "images", "aro-relation", file))["tuned"])
    assert told["accuracy"] == share([one for some in passed.values() for one in some])
    # The published mean leaves relations such as "near" out.
    kept = [sum(some) / len(some) for name, some in passed.items() if name != "near"]
    assert told["mean over parts"] == pytest.approx(sum(kept) / 2)


def write_region(folder: Path, **changed: float | str) -> Path:
    """A file of one relation."""
    box = {"bbox_x": 1, "bbox_y": 1, "bbox_w": 9, "bbox_h": 9}
    texts = {"true_caption": "a on b", "false_caption": "b on a", "relation_name": "on"}
    file = folder / "visual_genome_relation.json"
    file.write_text(json.dumps([{"image_path": "0.jpg", **box, **texts, **changed}]))
    return file


@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize(
    ("part", "number", "message"),
    [
        ("wh", 0.5, "the box of record 1 is empty"),
        ("wh", 1e9, "the box of record 1 is larger than any image"),
        ("xy", 1e300, "the box of record 1 lies outside of any image"),
        ("xy", -1e300, "the box of record 1 lies outside of any image"),
        ("xy", "nan", "the box of record 1 lies outside of any image"),
    ],
)
def test_aro_refuses_an_impossible_box(tmp_path: Path, axis: str, part: str, number: float | str, message: str) -> None:
    file = write_region(tmp_path, **{f"bbox_{part['xy'.index(axis)]}": number})
    with pytest.raises(UsageError, match=message):
        BENCHMARKS.get("aro-relation").read([file])


@pytest.mark.parametrize("place", [{"bbox_x": 64}, {"bbox_y": 64}, {"bbox_x": -9}, {"bbox_y": -9}])
def test_a_box_outside_of_its_image_is_refused(
    world: Path, clips: tuple[Path, Path], tmp_path: Path, place: dict[str, float]
) -> None:
    name = image_path(world, SUBSET, 0).name
    file = write_region(tmp_path, image_path=name, **place)
    with pytest.raises(UsageError, match=rf"the box of .*{name} .* outside of the image, which has 64 x"):
        measured(clips, world / "images", "aro-relation", file)


def test_aro_attribution_averages_frequent_pairs(world: Path, clips: tuple[Path, Path], tmp_path: Path) -> None:
    records = json.loads((world / "choices" / "aro" / "visual_genome_attribution.json").read_text())
    often, seldom = ({**record, "attributes": [name, "x"]} for name, record in zip(("a", "b"), records, strict=False))
    file = tmp_path / "visual_genome_attribution.json"
    file.write_text(json.dumps([often] * 25 + [seldom] * 24))
    entry = entries(measured(clips, world / "images", "aro-attribution", file))["base"]
    every, over_parts = entry.metrics
    assert (len(every.values), len(over_parts.values)) == (49, 25)
    assert over_parts.mean == every.values[0]


def test_aro_order(world: Path, clips: tuple[Path, Path], models: list[ReferenceModel], tmp_path: Path) -> None:
    images = [SUBSET.image_id(index) + ".jpg" for index in range(20)]
    options = ["a red star on gray", "red a star on gray", "a red star on gray", "on gray a red star"]
    cases = [{"image": f"val2014/{image}", "caption_options": options} for image in images]
    cases.append({"image": images[0], "caption_options": ["star", "star"]})  # No shuffle differs.
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    (metric,) = entries(measured(clips, world / "images", "aro-order", tmp_path))["base"].metrics
    passed = [int(scores(models[0], [image_of(world, image)], options).argmax()) == 0 for image in images]
    assert metric.values == passed


def test_captions_of_ones_own(
    world: Path, clips: tuple[Path, Path], models: list[ReferenceModel], tmp_path: Path
) -> None:
    texts = {"two": ["a red star", "a blue star"], "three": ["a circle", "a square", "a star"]}
    images = [SUBSET.image_id(index) for index in range(20)]
    records = [{"image_id": image, "captions": some, "kind": kind} for image in images for kind, some in texts.items()]
    (tmp_path / "own.json").write_text(json.dumps(records))
    told = figures(entries(measured(clips, world / "images", "captions", tmp_path))["base"])
    for kind, some in texts.items():
        passed = [int(scores(models[0], [image_of(world, f"{image}.png")], some).argmax()) == 0 for image in images]
        assert told[f"accuracy, {kind}"] == share(passed)
    assert told["mean over parts"] == pytest.approx((told["accuracy, two"] + told["accuracy, three"]) / 2)


def test_tells_of_items_that_nobody_can_pass(world: Path, clips: tuple[Path, Path], tmp_path: Path) -> None:
    """They count as failed, as in the published code; the chance level knows of them."""
    image = SUBSET.image_id(0)
    records = [["a star", "a circle"], ["a star", "a circle", "a star"], ["a star", "a square"]]
    (tmp_path / "own.json").write_text(json.dumps([{"image_id": image, "captions": some} for some in records]))
    results = measured(clips, world / "images", "captions", tmp_path / "own.json")
    for entry in results.entries:
        (note,) = entry.notes
        assert note.startswith("1 item of 3 cannot be passed, because a right text is among the wrong ones, or")
        assert entry.metrics[0].values[1] == 0
    assert results.references[0].value == pytest.approx((1 / 2 + 0 + 1 / 2) / 3)
    images = SUBSET.image_id(0), SUBSET.image_id(1)
    groups = [(images, ("a", "b")), (images, ("a", "a")), ((image, image), ("a", "b"))]
    (tmp_path / "examples.jsonl").write_text(
        "".join(
            json.dumps({"image_0": one, "image_1": two, "caption_0": left, "caption_1": right}) + "\n"
            for (one, two), (left, right) in groups
        )
    )
    results = measured(clips, world / "images", "winoground", tmp_path / "examples.jsonl")
    assert results.entries[0].notes[0].startswith("2 items of 3 cannot be passed")
    assert [round(r.value, 4) for r in results.references] == [0.0556, 0.0833, 0.0833]


def test_trigrams_are_shuffled() -> None:
    caption = "A man, on a red horse; jumps over the old fence."
    plain, within, order = with_shuffles(caption)
    words = plain.split()
    assert plain == "a man on a red horse jumps over the old fence"
    assert within != plain != order
    for start in range(0, len(words), 3):
        assert sorted(within.split()[start : start + 3]) == sorted(words[start : start + 3])
        assert " ".join(words[start : start + 3]) in order
    assert with_shuffles(caption) == [plain, within, order]


def test_relations_that_aro_leaves_out() -> None:
    assert len(NOT_AVERAGED) == 157
    assert {"near", "standing next to", "coming out of", "by", "drinking", "drinking from"} <= NOT_AVERAGED
    assert not {"on", "to the left of", "above", "sitting on", "riding", "in"} & NOT_AVERAGED


def test_in_sweeps_and_tables(world: Path, clips: tuple[Path, Path], tmp_path: Path, dialog_eval: Cli) -> None:
    choices = world / "choices"
    common = ["--checkpoint", clips[1], "--baseline", clips[0], "--images", world / "images", "--device", "cpu"]
    for benchmark, where in (("negbench-mcq", "negbench"), ("winoground", "winoground")):
        out = tmp_path / f"{benchmark}.json"
        files = ["--benchmark", benchmark, "--files", choices / where]
        ended = dialog_eval("sweep", *common, *files, "--betas", "0.5", "--out", out)
        assert (ended.code, ended.err) == (0, "")
        assert "chance" in ended.out
    write_table(list(tmp_path.glob("*.json")), tmp_path / "t.md")
    table = (tmp_path / "t.md").read_text()
    assert "NegBench MCQ" in table.splitlines()[4]
    assert "Winoground, groups" in table.splitlines()[4]
    assert "<summary>Choice: examples " in table
    assert "tuned, embedding blend 0.5" in table


Change = Callable[[Any], Any]


@pytest.mark.parametrize(
    ("benchmark", "name", "content", "message"),
    [
        ("sugarcrepe", "a.json", '{"0": {"filename": "x", "caption": "a"}}', "record 1: negative_caption: Field requ"),
        ("sugarcrepe", "a.json", '[{"filename": 1}]', "record 1: "),
        ("sugarcrepe", "a.json", "{}", "it has no records"),
        (
            "sugarcrepe",
            "a.json",
            '[{"filename": "x", "caption": "a", "caption2": "b", "negative_caption": "c"}]',
            "record 1 has a caption2: it is of --benchmark sugarcrepe-pp",
        ),
        ("sugarcrepe", "a.json", "7", "it has no records"),
        ("sugarcrepe", "a.json", '{"0": ', "is not a file of SugarCrepe: "),
        ("winoground", "a.jsonl", '{"image_0": "x"}\n', "record 1: image_1: Field required"),
        (
            "captions",
            "a.jsonl",
            '{}\n\n{"a": }\n',
            "a.jsonl is not a file of captions to choose from: line 3: Expecting",
        ),
        ("captions", "a.jsonl", '{}\n{"a": NaN}\n', "line 2: NaN is not a finite number"),
        ("winoground", "a.jsonl", b"\xff\xfe", "is not a file of Winoground: it is no UTF-8 text"),
        (
            "valse",
            "a.json",
            '{"a": {"image_file": "x", "caption": "a", "foil": "b", "mturk": {"caption": 1}}}',
            "valid",
        ),
        ("mmvp-vlm", "Q.csv", "q,t,s\n1,Texts,a\n2,Texts,b\n3,Texts,c\n", "come in pairs"),
        ("mmvp-vlm", "Q.csv", "q,t,s\n1,Texts,a\n2,Colors,b\n", "1 and 2 are a pair, but of two types"),
        ("mmvp-vlm", "Q.csv", "q,t,s\nx,Texts,a\n2,Colors,b\n", "record 1: number: Input should be a valid integer"),
        ("negbench-mcq", "m.csv", "image_path,caption_0,caption_1,correct_answer\nx,a,b,2\n", "correct_answer is 2"),
        ("negbench-mcq", "m.csv", "image_path,caption_0,caption_1,correct_answer\nx,a,,1\n", "correct_answer is 1"),
        ("negbench-mcq", "m.csv", "image_path,caption_0,caption_1,correct_answer\nx,a,,0\n", "record 1 has no two dif"),
        ("negbench-mcq", "m.csv", "image_path,caption_0\nx,a\n", "record 1: caption_1: Field required"),
        ("negbench-mcq", "m.json", '[{"a": 1}]', "record 1: image_path"),
        ("aro-relation", "r.json", "[]", "it has no records. Give --files visual_genome_relation.json."),
        (
            "aro-order",
            "o.json",
            '[{"image": "x", "caption_options": ["a"]}]',
            "each needs two different texts. Give --",
        ),
        (
            "aro-trigrams",
            "o.json",
            '[{"image": "x", "caption": ["a"]}]',
            "no record leaves anything to choose",
        ),
        ("captions", "c.json", '[{"image_id": "x", "captions": ["a"]}]', "record 1 has no two different captions"),
        ("captions", "c.json", '[{"image_id": "x", "captions": ["a", "a"]}]', "record 1 has no two different captions"),
        ("captions", "c.zip", b"PK\x03\x04\x8a", "it is no UTF-8 text. Unpack it, and give the file in it."),
        ("captions", "c.csv", "a,ä".encode("latin-1"), "it is no UTF-8 text. Save it as UTF-8."),
        ("nothing", "r.json", "[]", "--benchmark nothing: unknown benchmark; "),
    ],
)
def test_wrong_files(
    tmp_path: Path, world: Path, dialog_eval: Cli, benchmark: str, name: str, content: str | bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    common = ["--checkpoint", "none", "--images", world / "images", "--out", tmp_path / "out.json"]
    assert message in dialog_eval("choice", *common, "--benchmark", benchmark, "--files", tmp_path / name).mistake


def test_other_mistakes(tmp_path: Path, world: Path, dialog_eval: Cli) -> None:
    common = ["--checkpoint", "none", "--images", world / "images", "--out", tmp_path / "out.json"]
    ask = ["choice", *common, "--benchmark", "sugarcrepe"]
    assert (
        "has no .json files of SugarCrepe. Give --files data/*.json of sugar-crepe."
        in dialog_eval(*ask, "--files", tmp_path).mistake
    )
    assert "cannot be read" in dialog_eval(*ask, "--files", tmp_path / "none.json").mistake
    record = {"filename": "no/such.jpg", "caption": "a", "negative_caption": "b"}
    (tmp_path / "a.json").write_text(json.dumps([record]))
    assert "lacks image 'no/such.jpg'" in dialog_eval(*ask, "--files", tmp_path / "a.json").mistake
    sweep = ["sweep", *common, "--baseline", "x", "--files", tmp_path]
    assert "choice needs both --benchmark and --files" in dialog_eval(*sweep).mistake


def test_every_benchmark_says_what_it_is() -> None:
    titles = [benchmark.title for benchmark in BENCHMARKS.all().values()]
    assert len(set(titles)) == len(titles) == 11
