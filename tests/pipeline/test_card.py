import json
import re
import socket
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from helpers.cli import Cli
from helpers.rows import gates_of, make_row, shard_of, write_shard
from helpers.terminal import on_terminal
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from dialog_gen.core.errors import UsageError
from dialog_gen.core.version import __version__
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.record import DIALOGUES, REJECTS, STATEMENTS
from dialog_gen.dataset.writer import open_writer
from dialog_gen.download.manifests import load_manifest
from dialog_gen.download.provenance import note_manifest
from dialog_gen.gates.language import Language, LanguageSettings
from dialog_gen.models.registry import MODELS
from dialog_gen.publish.card import COLUMN_NOTES, make_card
from dialog_gen.publish.card import card as published_card
from dialog_gen.publish.card_data import card_data, known_model
from dialog_gen.publish.languages import languages_of
from dialog_gen.publish.markdown import plain
from dialog_gen.publish.thumbnails import THUMBNAILS, thumbnail_grid

REPO = "me/dialogues"
GATES = {
    "pairs": 20,
    "kept": 15,
    "images_kept": 9,
    "gates": {"length": {"scored": 20, "marked": 4}, "leak": {"scored": 20, "marked": 1}},
    "settings": {"length": {"min": 1, "max": 40}, "leak": {}},
}
LINK_ROT = {
    "rows": 1300,
    "urls": 1234,
    "success_rate": 0.7,
    "alive": 0.75,
    "opted_out": 12,
    "duplicates": 66,
    "retries": 0,
    "outcomes": {"success": 864, "http_404": 358, "opted_out": 12},
}


def make_dataset(out: Path, count: int = 10, *, config: dict[str, Any] | None = None, **row: Any) -> DatasetFolder:
    rows = [make_row(i, "accepted", **row) for i in range(count)] + [
        make_row(99, "rejected"),
        make_row(98, "unreadable"),
    ]
    with open_writer(str(out), {"schema_version": 3, "temperature": 0.7, "seed": 3, **(config or {})}) as store:
        write_shard(store, shard_of("s0", len(rows)), rows)
    return DatasetFolder(str(out))


def card(folder: DatasetFolder, link_rot: Path | None = None, **options: Any) -> str:
    return make_card(card_data(folder, link_rot=link_rot), REPO, **options)


def header(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_header(tmp_path: Path) -> None:
    found = header(card(make_dataset(tmp_path), licence="CC-BY-4.0"))
    assert found["license"] == "cc-by-4.0"
    assert found["size_categories"] == ["n<1K"]
    assert [(c["config_name"], c["data_files"][0]["path"]) for c in found["configs"]] == [
        ("default", "data/*.parquet"),
        ("rejects", "rejects/*.parquet"),
    ]
    # What `make_row` leaves out is null in every row.
    null = ({"url", "source_sha256", "answer_logprobs", "gates"}, {"url", "source_sha256", "detail"})
    for config, info, schema, left_out in zip(
        found["configs"], found["dataset_info"], (DIALOGUES, REJECTS), null, strict=True
    ):
        features = datasets.Features.from_arrow_schema(schema)
        wanted = {name: feature for name, feature in features.items() if name not in left_out}
        assert datasets.Features._from_yaml_list(info["features"]) == wanted
        assert config["columns"] == list(wanted)
    assert found["annotations_creators"] == ["machine-generated"]


def test_columns_without_a_value_are_not_loaded(tmp_path: Path) -> None:
    out = tmp_path / "out"
    gates = gates_of([[]], length=[3.0])
    with open_writer(str(out), {"schema_version": 3}) as store:
        write_shard(store, shard_of("a", 2), [make_row(0), make_row(1, "rejected")])
        write_shard(store, shard_of("b", 2), [make_row(2, gates=gates), make_row(3, answer_logprobs=[None])])
    folder = DatasetFolder(str(out))
    text = card(folder)
    assert "null in every row, so `load_dataset` and the viewer leave them out: `url`, `source_sha256`, " in text
    before = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    (out / "README.md").write_text(text)
    for name, left_out in (
        ("default", {"url", "source_sha256", "answer_logprobs"}),
        ("rejects", {"url", "source_sha256", "detail"}),
    ):
        rows = datasets.load_dataset(str(out), name, split="train", cache_dir=str(tmp_path / "cache-2"))
        streamed = datasets.load_dataset(str(out), name, split="train", streaming=True)
        schema = DIALOGUES if name == "default" else REJECTS
        assert set(rows.column_names) == set(schema.names) - left_out
        assert set(next(iter(streamed))) == set(rows.column_names)
        assert isinstance(rows.features["images"].feature, datasets.Image)
    rows = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache-2"))
    assert rows["texts"] == before["texts"]
    assert [row and row[0][0]["score"] for row in rows["gates"]] == [None, 3.0, None]


def test_a_full_dataset_declares_no_columns(tmp_path: Path) -> None:
    full: dict[str, Any] = {
        "url": "http://x/y",
        "source_sha256": "0",
        "answer_logprobs": [-0.5],
        "gates": gates_of([[]], length=[1.0]),
    }
    found = header(card(make_dataset(tmp_path, **full)))
    assert "columns" not in found["configs"][0]
    assert "columns" in found["configs"][1]


def test_without_images_their_column_is_left_out(tmp_path: Path) -> None:
    text = published_card(make_dataset(tmp_path), REPO, without_images=True)
    assert all("images" not in config["columns"] for config in header(text)["configs"])
    assert "**The images are not part of it**" in text
    assert "a PIL image" not in text


@pytest.mark.parametrize(
    ("texts", "languages"),
    [
        ([("What is in the picture of the kitchen?", "There is a wooden table with four chairs.")], ["en"]),
        ([("Was ist auf diesem Bild zu sehen?", "Auf dem Tisch liegt eine schwarze Katze.")], ["de"]),
        ([("この画像には何が写っていますか。", "木のテーブルの上に黒い猫がいます。")], ["ja"]),
        ([("7?", "7")], None),
    ],
)
def test_the_language_is_detected(tmp_path: Path, texts: list[tuple[str, str]], languages: list[str] | None) -> None:
    pairs = [{"user": question, "assistant": answer} for question, answer in texts]
    assert header(card(make_dataset(tmp_path, texts=pairs))).get("language") == languages


def test_several_languages() -> None:
    english = "There is a wooden table with four chairs in the kitchen of the house."
    german = "Auf dem Tisch in der Küche des Hauses liegt eine schwarze Katze und schläft."
    french = "Il y a une grande table en bois avec quatre chaises dans la cuisine de la maison."
    assert languages_of([english] * 60 + [german] * 38 + [french] * 2) == ["en", "de"]
    assert languages_of([]) == []


def test_the_classifier_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    languages_of([])
    Language(LanguageSettings(), {})

    def read(*_: object, **__: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("py3langid.langid.LanguageIdentifier.from_model_file", read)
    assert languages_of(["There is a wooden table with four chairs in the kitchen of the house."]) == ["en"]
    assert Language(LanguageSettings(), {}).settings.expected == "en"


def test_the_citation(tmp_path: Path) -> None:
    entry = (
        make_card(card_data(make_dataset(tmp_path)), "some-one/my_photo.set").split("```bibtex\n")[1].split("\n```")[0]
    )
    assert entry.splitlines() == [
        "@misc{my-photo-set,",
        r"  title = {my\_photo.set: question-answer dialogues about 10 images},",
        "  author = {{some-one}},",
        "  year = {2025},",
        r"  howpublished = {\url{https://huggingface.co/datasets/some-one/my_photo.set}},",
        f"  note = {{Made with dialog-gen {__version__}}},",
        "}",
    ]


def test_thumbnails(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, 30)
    picture = thumbnail_grid(folder)
    assert picture is not None
    with Image.open(BytesIO(picture)) as opened:
        assert opened.format == "WEBP"
        assert opened.size == (8 * 132 - 4, 3 * 132 - 4)
    assert thumbnail_grid(folder) == picture
    text = make_card(card_data(folder), REPO, thumbnails=THUMBNAILS)
    assert "](thumbnails.webp)" in text
    assert "](thumbnails.webp)" not in card(folder)


def test_no_thumbnails_without_images(tmp_path: Path) -> None:
    assert thumbnail_grid(make_dataset(tmp_path / "a", images=None)) is None
    assert thumbnail_grid(make_dataset(tmp_path / "b", images=[{"bytes": b"<html>", "path": "x"}])) is None


def test_the_command_prints_the_card(tmp_path: Path, dialog_gen_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_dataset(tmp_path)
    monkeypatch.setattr(socket, "socket", None)
    ended = dialog_gen_cli("card", tmp_path, "--repo", REPO, "--licence", "cc-by-4.0")
    assert ended.out == card(folder, licence="cc-by-4.0")
    assert 'load_dataset("USER/NAME"' in dialog_gen_cli("card", tmp_path).out
    assert "USER/NAME" in dialog_gen_cli("card", tmp_path, "--repo", "one").mistake
    assert "empty" in dialog_gen_cli("card", tmp_path, "--repo", REPO, "--licence", " ").mistake


def test_a_terminal_gets_what_is_worth_a_look_and_a_file_everything(tmp_path: Path, dialog_gen_cli: Cli) -> None:
    folder = make_dataset(tmp_path / "d")
    code, said = on_terminal(tmp_path, "dialog_gen", "card", "d", "--repo", REPO)
    whole = card(folder)
    assert code == 0
    assert re.findall(r"^## (.*?)\r?$", said, re.M) == [
        "Counts",
        "How it was made",
        "Quality gates",
        "Images",
        "Licence",
        "Known contamination",
    ]
    assert f"parts of a card of {len(whole.splitlines())} lines" in said
    ended = dialog_gen_cli("card", folder.location, "--repo", REPO, "--out", tmp_path / "card.md")
    assert (ended.code, ended.out) == (0, f"{tmp_path / 'card.md'}\n")
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == whole


@pytest.mark.parametrize(
    ("licence", "wanted"),
    [
        (None, {"license": "unknown"}),
        ("apache-2.0", {"license": "apache-2.0"}),
        ("ask: me\nfirst", {"license": "other", "license_name": "see-the-card"}),
    ],
)
def test_licences(tmp_path: Path, licence: str | None, wanted: dict[str, str]) -> None:
    text = card(make_dataset(tmp_path), licence=licence)
    assert {key: value for key, value in header(text).items() if key.startswith("license")} == wanted
    assert plain(licence or "not stated") in text


def test_every_column_is_explained(tmp_path: Path) -> None:
    assert set(COLUMN_NOTES) == {*DIALOGUES.names, STATEMENTS, *REJECTS.names}
    text = card(make_dataset(tmp_path))
    assert all(f"| `{name}` |" in text for name in COLUMN_NOTES if name != STATEMENTS)


def test_what_it_tells(tmp_path: Path) -> None:
    out = tmp_path / "dialogues"
    (tmp_path / "download").mkdir()
    (tmp_path / "download" / "link_rot.json").write_text(json.dumps(LINK_ROT))
    note_manifest(tmp_path / "download", load_manifest("cc3m"))
    config = {"images": str(tmp_path / "download" / "images"), "deterministic": False}
    folder = make_dataset(out, config=config, model="llava-1.5-7b", protocol="llava-3qa", model_revision="abc123")
    (out / "gates.json").write_text(json.dumps(GATES))
    text = card(folder)
    for told in (
        "10 pairs about 10 images",
        "| accepted | 10 | 83.3% |",
        r"| rejected | too\_few\_pairs | 1 |",
        "| unreadable | truncated | 1 |",
        r"| llava\-1\.5\-7b | abc123 | e | 1 | llava\-3qa | 10 |",
        r"temperature 0\.7, seed 3",
        "15 of 20 pairs (75.0%) are unmarked, on 9 images",
        "below 1 or above 40 | 20 | 4 | 20.0% |",
        "never | 20 | 1 | 5.0% |",
        "of 1,234 different URLs 70.0% gave an image",
        "12 opted out",
        r"| http\_404 | 358 |",
        "their owners",
        "VQAv2, GQA",
        "Llama 2 Community License",
        f'load_dataset("{REPO}"',
        f"dialog-gen pull {REPO}",
    ):
        assert told in text, told
    # Not asked for, which does not say that the texts are not reproducible.
    assert "deterministic" not in text
    from dialog_gen.protocols.protocol import load_protocol

    assert all(plain(turn.user) in text for turn in load_protocol("llava-3qa").turns)
    assert card(folder) == text
    # Whoever gets the dataset has no such folder, but what push says of it.
    data = card_data(folder)
    (out / "images.json").write_text(data.images.model_dump_json())
    (tmp_path / "download").rename(tmp_path / "elsewhere")
    assert card(folder) == text


def test_five_examples_without_marked_pairs(tmp_path: Path) -> None:
    folder = make_dataset(
        tmp_path, 30, texts=[{"user": "Good?", "assistant": "Yes."}, {"user": "Bad?", "assistant": "No."}]
    )
    assert len(card_data(folder).examples) == 5
    marked = make_dataset(
        tmp_path / "marked",
        30,
        texts=[{"user": "Good?", "assistant": "Yes."}, {"user": "Bad?", "assistant": "No."}],
        gates=gates_of([[], ["length"]]),
    )
    data = card_data(marked)
    assert [example["pairs"] for example in data.examples] == [[{"user": "Good?", "assistant": "Yes."}]] * 5
    assert len({example["caption"] for example in data.examples}) == 5


def test_no_dialogue_at_all(tmp_path: Path) -> None:
    text = card(make_dataset(tmp_path, 0))
    assert "There is no dialogue to show" in text
    assert [config["config_name"] for config in header(text)["configs"]] == ["rejects"]


def test_without_images(tmp_path: Path) -> None:
    config = {"compacted": {"shard_mb": 500, "images": False}}
    text = card(make_dataset(tmp_path, images=None, config=config))
    assert "**The images are not part of it**" in text
    assert re.search(r"and 0 of the \d+ dialogues have the URL of their image", text)
    assert "dialog-gen rehydrate dialogues --out with-images" in text


@pytest.mark.parametrize("name", MODELS.names())
def test_every_known_model_has_its_contamination(name: str) -> None:
    family = known_model(name)
    assert family is not None
    assert ("embedded world" in family.trained_on) == name.startswith("shapes")
    assert known_model(MODELS.get(name).source) == family


@pytest.mark.parametrize("images", ["download", "download/images", "download/images/*.tar"])
def test_the_download_is_found_from_whatever_names_its_images(tmp_path: Path, images: str) -> None:
    (tmp_path / "download" / "images").mkdir(parents=True)
    (tmp_path / "download" / "link_rot.json").write_text(json.dumps(LINK_ROT))
    folder = make_dataset(tmp_path / "out", config={"images": str(tmp_path / images)})
    assert "1,234 different URLs" in card(folder)


def test_what_it_was_shared_with_comes_first(tmp_path: Path) -> None:
    """A folder of that name on this machine may be another one."""
    (tmp_path / "link_rot.json").write_text(json.dumps(LINK_ROT))
    folder = make_dataset(tmp_path / "out", config={"images": str(tmp_path / "images")})
    (tmp_path / "out" / "images.json").write_text(json.dumps({"link_rot": {**LINK_ROT, "urls": 77}}))
    assert "77 different URLs" in card(folder)


def test_the_licence_of_the_images_is_not_that_of_the_dataset(tmp_path: Path) -> None:
    note_manifest(tmp_path, load_manifest("shapes"))
    text = card(make_dataset(tmp_path / "out", config={"images": str(tmp_path / "images")}))
    assert "Of the images and captions: Apache" in text
    assert header(text)["license"] == "unknown"


def test_a_list_is_not_taken_for_a_manifest_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "shapes.csv").write_text("url,caption\nhttp://x/y,z\n")
    note_manifest(tmp_path, load_manifest(str(tmp_path / "shapes.csv")))
    text = card(make_dataset(tmp_path / "out", config={"images": str(tmp_path / "images")}))
    assert "Of the images and captions: that of each image" in text
    assert "The URLs in shapes" in text
    assert "Apache" not in text.split("## Licence")[1].split("##")[0]


def test_pairs_that_no_gate_saw(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, count=30)
    (tmp_path / "gates.json").write_text(json.dumps(GATES))
    assert "The gates were not applied to the other 10 pairs, which have no marks." in card(folder)
    assert "were not applied" not in card(make_dataset(tmp_path / "all", count=20))


def test_link_rot_by_hand(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "out")
    (tmp_path / "rot.json").write_text(json.dumps(LINK_ROT))
    assert "1,234 different URLs" in card(folder, tmp_path / "rot.json")
    with pytest.raises(UsageError, match="no such file"):
        card(folder, tmp_path / "none.json")
    (tmp_path / "rot.json").write_text('{"urls": "many"}')
    with pytest.raises(UsageError, match=r"is no link_rot\.json of `dialog-gen download`: urls"):
        card(folder, tmp_path / "rot.json")


def test_damaged_notes(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path)
    for name in ("gates.json", "images.json"):
        (tmp_path / name).write_text('{"kept": 1')
        with pytest.raises(UsageError, match=rf"{re.escape(name)} is damaged"):
            card(folder)
        (tmp_path / name).unlink()


# Strangers' words

HOSTILE = (
    "<script>alert(1)</script> <img src=x onerror=alert(1)> &lt;b&gt; [x](javascript:alert(1)) ![x](http://x) `code` "
    "http://evil.example www.evil.example me@evil.example @someone | a | b |\n\n# Heading\n\n---\n\n- item\n\n"
    "<!-- --> *bold* _it_ ~~x~~ $x$ \u202eright to left\u2066 \0 \x1b[31m :smile: &#60;script&#62;"
)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert attrs == [] or tag in ("code", "th", "td"), (tag, attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def rendered(markdown: str) -> Tags:
    """As the Hub renders it: with HTML, tables and links without brackets."""
    parser = MarkdownIt("gfm-like", {"html": True, "linkify": False}).enable("table")
    found = Tags()
    found.feed(parser.render(markdown))
    return found


@given(st.text() | st.text(alphabet="<>&[]()!`*_~#-+|\\.:@/ \nab1"))
def test_plain_text_stays_text(text: str) -> None:
    found = rendered(f"x {plain(text)} x")
    assert found.tags == ["p"]
    seen = "".join(c for c in " ".join(text.split()) if c.isprintable() or c == " ")
    assert "".join(c for c in found.text if c.isprintable()).split() == f"x {seen} x".split()


def test_hostile_words_do_nothing(tmp_path: Path) -> None:
    folder = make_dataset(
        tmp_path,
        3,
        config={"dtype": HOSTILE},
        caption=HOSTILE,
        texts=[{"user": HOSTILE, "assistant": HOSTILE}],
        model=HOSTILE,
        model_revision=HOSTILE,
        protocol=HOSTILE,
        engine_version=HOSTILE,
    )
    (tmp_path / "images.json").write_text(json.dumps({"manifest": HOSTILE, "homepage": HOSTILE, "licence": HOSTILE}))
    (tmp_path / "gates.json").write_text(
        json.dumps({**GATES, "gates": {HOSTILE: {"scored": 1, "marked": 1}}, "settings": {HOSTILE: {"min": HOSTILE}}})
    )
    text = card(folder, licence=HOSTILE)
    body = text.split("---\n", 2)[2]
    assert header(text)["license"] == "other"
    found = rendered(body)
    lists, tables = {"ul", "ol", "li"}, {"table", "thead", "tbody", "tr", "th", "td"}
    assert set(found.tags) <= {"h1", "h2", "p", "strong", "em", "code", "pre"} | lists | tables
    assert found.tags.count("h1") == 1
    assert "<script>alert(1)</script>" in found.text
    assert "<" not in body  # wherever it is rendered
    assert not re.search("[\0\x1b\u202e\u2066]", text)
    for link in ("http://evil", "www.evil", "me@evil", " @someone"):
        assert link not in body


def test_long_words_are_cut() -> None:
    assert plain("a" * 500, limit=10) == "a" * 9 + "…"
    assert plain("a" * 10, limit=10) == "a" * 10
