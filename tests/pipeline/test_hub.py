import json
import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.file_download
import pyarrow.parquet as pq
import pytest
from helpers.hub import TOKEN, Failure, Repo, StandIn, replaced_hub
from helpers.progress import Heard
from helpers.rows import files_of, make_row, rows_of, shard_of, write_shard

from dialog_gen.core.errors import DialogGenError, FailedCheckError, UsageError
from dialog_gen.dataset import shard_writer as store_module
from dialog_gen.dataset.errors import DamagedDatasetError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.record import DIALOGUES
from dialog_gen.dataset.verify import verify
from dialog_gen.dataset.writer import open_writer
from dialog_gen.publish import compact as compact_module
from dialog_gen.publish.card import make_card
from dialog_gen.publish.card_data import card_data
from dialog_gen.publish.compact import compact
from dialog_gen.publish.hub import HubError
from dialog_gen.publish.pull import PullSummary, pull
from dialog_gen.publish.push import PushSummary, push
from dialog_gen.upkeep.repair import repair

REPO = "me/dialogues"
CONFIG: dict[str, Any] = {"schema_version": 3, "model": "llava-1.5-7b", "seed": 1}
COMMIT, UPLOAD = "POST /api/datasets/.*/commit/", "PUT /upload/"


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with replaced_hub(tmp_path / "hf-home", monkeypatch) as stand_in:
        yield stand_in


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "source")


def make_dataset(
    out: Path,
    *,
    shards: int = 3,
    config: dict[str, Any] = CONFIG,
    first: int = 0,
    ids: str = "image",
    **columns: Any,
) -> Path:
    """Of images from number `first` on, whose ids do not tell it."""
    with open_writer(str(out), config) as store:
        for shard in range(shards):
            numbers = [10 * shard + i for i in range(4)]
            rows = [
                make_row(
                    first + n,
                    "rejected" if n % 10 == 2 else "accepted",
                    **{"image_id": f"{ids} {n}", "url": f"https://images.example/{first + n}", **columns},
                )
                for n in numbers
            ]
            write_shard(store, shard_of(f"s{shard}", 4), rows)
        store.put_json("run.json", {"run": 1})
    return out


def pushed(source: Path, **options: Any) -> PushSummary:
    return push(source, REPO, **options)


def pulled(tmp_path: Path, **options: Any) -> PullSummary:
    return pull(REPO, tmp_path / "pulled", **options)


def test_round_trip(hub: StandIn, source: Path, tmp_path: Path) -> None:
    card = make_card(card_data(DatasetFolder(str(source))), REPO, licence="cc-by-4.0")
    files = files_of(source)
    summary = pushed(source, licence="cc-by-4.0")
    assert files_of(source) == files
    assert hub.repos[REPO].files == {**files, "README.md": card.encode()}
    assert (summary.images, summary.pairs, summary.commit) == (9, 9, hub.repos[REPO].head)
    assert len(hub.repos[REPO].commits) == 2  # the Hub's own first one, and this
    found = pulled(tmp_path)
    assert (found.images, found.accepted, found.commit) == (12, 9, summary.commit)
    there = files_of(tmp_path / "pulled")
    assert json.loads(there.pop("command.json"))["arguments"] == {"repo": REPO, "revision": summary.commit}
    assert there == {**files, "README.md": card.encode()}
    assert verify(DatasetFolder(str(tmp_path / "pulled"))).problems == []


def test_a_second_push_sends_nothing_and_commits_nothing(hub: StandIn, source: Path) -> None:
    first = pushed(source)
    hub.requests.clear()
    assert pushed(source).commit == first.commit
    assert hub.seen(UPLOAD) == hub.seen(COMMIT) == []


def test_a_push_takes_away_what_is_no_longer_there(hub: StandIn, source: Path, tmp_path: Path) -> None:
    pushed(source)
    smaller = make_dataset(tmp_path / "smaller", shards=1)
    hub.requests.clear()
    pushed(smaller)
    assert set(hub.repos[REPO].files) == {*files_of(smaller), "README.md"}
    assert ".gitattributes" in hub.repos[REPO].commits[hub.repos[REPO].head]
    assert hub.seen(UPLOAD) == []  # the Hub has s0 already


def test_an_upload_that_fails_leaves_no_version_and_the_next_push_sends_the_rest(hub: StandIn, source: Path) -> None:
    hub.failures.append(Failure(UPLOAD, 403, skip=2))
    with pytest.raises(HubError, match="Try again") as caught:
        pushed(source)
    assert caught.value.exit_code == 1
    assert hub.repos[REPO].files == {}
    assert hub.seen(COMMIT) == []
    there = set(hub.objects)
    assert len(there) >= 2
    hub.failures.clear()
    hub.requests.clear()
    pushed(source)
    assert len(hub.seen(UPLOAD)) == 6 - len(there)
    assert {oid for oid in there if hub.seen(f"{UPLOAD}{oid}")} == set()
    assert set(hub.repos[REPO].files) == {*files_of(source), "README.md"}


@pytest.mark.parametrize("done_first", [False, True], ids=["refused", "answer lost"])
@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_commit_that_fails_for_a_moment(hub: StandIn, source: Path, status: int, done_first: bool) -> None:
    hub.failures.append(Failure(COMMIT, status, times=1, done_first=done_first))
    assert pushed(source).commit == hub.repos[REPO].head
    assert len(hub.repos[REPO].commits) == 2
    assert len(hub.seen(COMMIT)) == (1 if done_first else 2)


def test_a_commit_that_keeps_failing(hub: StandIn, source: Path) -> None:
    pushed(source)
    before = hub.repos[REPO].files
    hub.failures.append(Failure(COMMIT, 502))
    with pytest.raises(HubError, match=r"the Hub failed \(502\)"):
        pushed(make_dataset(source.with_name("more"), shards=4))
    assert hub.repos[REPO].files == before
    assert len(hub.seen(COMMIT)) == 1 + 4


def test_someone_else_was_faster(hub: StandIn, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(source)
    upload = huggingface_hub.HfApi.preupload_lfs_files

    def slow_upload(*arguments: Any, **options: Any) -> None:
        upload(*arguments, **options)
        if not hub.seen("theirs"):
            hub.requests.append("theirs")
            hub.repos[REPO].commit({"README.md": b"theirs"})

    monkeypatch.setattr(huggingface_hub.HfApi, "preupload_lfs_files", slow_upload)
    with pytest.raises(HubError, match="someone else changed me/dialogues meanwhile"):
        pushed(make_dataset(source.with_name("more"), shards=4))
    assert hub.repos[REPO].files == {"README.md": b"theirs"}


def test_ctrl_c_leaves_the_repository_as_it_was(hub: StandIn, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(source)
    before = hub.repos[REPO].files

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.lfs._upload_single_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pushed(make_dataset(source.with_name("more"), shards=4))
    assert hub.repos[REPO].files == before


# What is refused


def holding(files: dict[str, bytes], **repo: Any) -> Callable[[StandIn], None]:
    def prepare(hub: StandIn) -> None:
        hub.repos[REPO] = Repo(**repo)
        hub.repos[REPO].commit(files)

    return prepare


def dataset_of(**config: Any) -> dict[str, bytes]:
    return {"config.json": json.dumps({**CONFIG, **config}).encode(), "shards/s0.json": b"{}"}


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (holding(dataset_of(schema_version=1)), "schema_version: 1 there, 3 here"),
        (holding(dataset_of(model="blip2-opt-2.7b")), "model: 'blip2-opt-2.7b' there, 'llava-1.5-7b' here"),
        (holding({"README.md": b"", "train.csv": b"a,b"}), "no dialog-gen dataset but 'README.md'"),
        (holding({"config.json": b'{"model_type": "clip"}', "model.safetensors": b""}), "no dialog-gen dataset"),
        (holding({"config.json": b"[", "shards/s0.json": b"{}"}), "no dialog-gen dataset"),
    ],
    ids=["schema", "model", "csv", "model repository", "damaged"],
)
def test_a_repository_of_something_else(
    hub: StandIn, source: Path, prepare: Callable[[StandIn], None], message: str
) -> None:
    prepare(hub)
    before = hub.repos[REPO].files
    with pytest.raises(UsageError, match=message) as caught:
        pushed(source)
    assert "--replace" in str(caught.value)
    assert hub.repos[REPO].files == before
    assert hub.objects == {}
    pushed(source, replace=True)
    assert set(hub.repos[REPO].files) == {*files_of(source), "README.md"}


@pytest.mark.parametrize("without_images", [False, True])
def test_a_dataset_of_other_images(hub: StandIn, source: Path, tmp_path: Path, without_images: bool) -> None:
    """Of the same model and protocol; their image ids are the same, and even the path may be."""
    pushed(source, without_images=without_images)
    before = hub.repos[REPO].files
    for images in ("/data/cc3m", None):
        config = CONFIG | ({"images": images} if images else {})
        other = make_dataset(tmp_path / f"of {images}", first=1000, config=config)
        with pytest.raises(UsageError, match=f"holds a dataset of other images .made of None, this one of {images!r}"):
            pushed(other)
        assert hub.repos[REPO].files == before
        pushed(other, replace=True)
        assert set(hub.repos[REPO].files) == {*files_of(other), "README.md"}
        pushed(source, without_images=without_images, replace=True)


def gated(source: Path, tmp_path: Path) -> Path:
    with open_writer(str(source), CONFIG) as store:
        for manifest in list(store.manifests()):
            store.rewrite(manifest, lambda table: table, gates_sha256="g")
    return source


def compacted(source: Path, tmp_path: Path) -> Path:
    compact(DatasetFolder(str(source)), str(tmp_path / "compacted"))
    return tmp_path / "compacted"


def without_the_images(source: Path, tmp_path: Path) -> Path:
    compact(DatasetFolder(str(source)), str(tmp_path / "without"), shard_mb=100, without_images=True)
    return tmp_path / "without"


def grown(source: Path, tmp_path: Path) -> Path:
    return make_dataset(source, shards=5)


def moved(source: Path, tmp_path: Path) -> Path:
    """Made again of images that lie elsewhere now, by another version of the engine."""
    return make_dataset(
        tmp_path / "moved", shards=4, config={**CONFIG, "images": "/new"}, engine_version="2", ids="new"
    )


@pytest.mark.parametrize("without_images", [False, True])
@pytest.mark.parametrize("change", [gated, compacted, without_the_images, grown, moved])
def test_another_version_of_the_same_dataset(
    hub: StandIn, source: Path, tmp_path: Path, change: Callable[[Path, Path], Path], without_images: bool
) -> None:
    pushed(source, without_images=without_images)
    first = hub.repos[REPO].head
    pushed(change(source, tmp_path), verify=False)
    assert hub.repos[REPO].head != first


def test_a_repository_whose_rows_cannot_be_read(hub: StandIn, source: Path) -> None:
    holding({**dataset_of(), "data/s0.parquet": b"PAR1 no more"})(hub)
    with pytest.raises(UsageError, match=r"data/s0\.parquet is no file of a dialog-gen dataset .*--replace"):
        pushed(source)
    holding({**dataset_of(), "data/s0.parquet": b"PAR1 no more"})(hub)
    pushed(source, replace=True)


def test_an_empty_repository_and_one_with_a_card_are_filled(hub: StandIn, source: Path) -> None:
    holding({".gitattributes": b"", "README.md": b"soon"})(hub)
    pushed(source)
    assert "data/s0.parquet" in hub.repos[REPO].files


def test_private(hub: StandIn, source: Path) -> None:
    pushed(source, private=True)
    assert hub.repos[REPO].private
    hub.repos[REPO].private = False
    with pytest.raises(UsageError, match="is public: --private is for new ones"):
        pushed(source, private=True)


def test_no_token(hub: StandIn, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UsageError, match="no Hugging Face token: log in with `hf auth login`"):
        pushed(source)
    assert hub.requests == []


def test_a_token_that_the_hub_refuses(hub: StandIn, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(UsageError, match=r"the Hub refused the token") as caught:
        pushed(source)
    assert "hf_expired" not in str(caught.value)
    assert hub.repos == {}


@pytest.mark.parametrize("status", [403, 500])
@pytest.mark.parametrize(
    "request_", ["GET /api/whoami", "POST /api/repos/create", "preupload", "batch", UPLOAD, COMMIT]
)
def test_the_token_is_in_no_error(
    hub: StandIn,
    source: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    request_: str,
    status: int,
) -> None:
    """The stand-in's errors repeat what it was sent, as careless servers do."""
    hub.failures.append(Failure(request_, status))
    caplog.set_level(logging.INFO)
    with pytest.raises(DialogGenError) as caught:
        pushed(source)
    assert "\n" not in str(caught.value)
    out, err = capfd.readouterr()
    assert TOKEN not in str(caught.value) + caplog.text + out + err
    assert REPO not in hub.repos or hub.repos[REPO].files == {}


def test_a_hub_that_is_not_there(hub: StandIn, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="the Hub or the connection to it failed"):
        pushed(source)


@pytest.mark.parametrize("name", ["dialogues", "a/b/c", "me/two words", "", "../me"])
def test_a_name_that_is_none(hub: StandIn, source: Path, name: str) -> None:
    with pytest.raises(UsageError, match="USER/NAME"):
        push(source, name)
    assert hub.requests == []


def test_a_damaged_dataset_is_not_pushed(hub: StandIn, source: Path) -> None:
    file = source / "data" / "s1.parquet"
    data = file.read_bytes()
    file.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    with pytest.raises(DamagedDatasetError, match=r"data/s1\.parquet cannot be read \(.* have another checksum"):
        pushed(source)
    file.write_bytes(data[:-1])
    with pytest.raises(UsageError, match=r"data/s1\.parquet has \d+ bytes"):
        pushed(source, verify=False)
    assert hub.repos == {}


@pytest.mark.parametrize("name", ["v1", "v2", "v2-gated"])
def test_a_dataset_of_an_older_version_is_pushed_as_one_of_the_current_version(
    hub: StandIn, name: str, tmp_path: Path
) -> None:
    stored = Path(shutil.copytree(Path(__file__).parents[1] / "data" / name, tmp_path / name))
    before = files_of(stored)
    for _ in range(2):
        summary = pushed(stored, replace=False)
        assert (summary.images, summary.pairs) == (8, 24)
        assert files_of(stored) == before
    there = hub.repos[REPO].files
    assert json.loads(there["config.json"])["schema_version"] == 3
    assert b"One row per image (version 3 of the record)." in there["README.md"]
    assert (b"17 of 24 pairs (70.8%) are unmarked" in there["README.md"]) is (name == "v2-gated")
    pulled(tmp_path)
    rows, found = list(DatasetFolder(str(stored)).rows()), list(DatasetFolder(str(tmp_path / "pulled")).rows())
    assert found == rows
    loaded = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "pulled" / "data" / "*.parquet"),
        cache_dir=str(tmp_path / "c"),
        split="train",
    )
    assert loaded.remove_columns("images")[0]["gates"] == rows[0]["gates"]


@pytest.mark.parametrize("check", [False, True])
def test_a_dataset_of_another_record_is_not_pushed(
    hub: StandIn, source: Path, monkeypatch: pytest.MonkeyPatch, check: bool
) -> None:
    older = DIALOGUES.remove(DIALOGUES.get_field_index("caption"))
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "dialogues_schema", lambda *columns: older)
        older_one = make_dataset(source.with_name("older"))
    with pytest.raises(
        UsageError, match="another version of dialog-gen: its columns differ from the record in caption"
    ):
        pushed(older_one, verify=check)
    assert hub.requests == []


def test_a_dataset_elsewhere() -> None:
    with pytest.raises(UsageError, match="is not on this machine"):
        push(DatasetFolder("memory://somewhere"), REPO)


# Without images


def test_without_images(hub: StandIn, source: Path, tmp_path: Path) -> None:
    hub.failures.append(Failure(COMMIT, 400, times=1))
    with pytest.raises(HubError):
        pushed(source, without_images=True)
    staged = files_of(source / ".publish")
    assert staged.pop("command.json")  # is not published: it names folders of this machine
    assert staged.pop("README.md")  # the card takes its place
    summary = pushed(source, without_images=True)
    assert not (source / ".publish").exists()
    assert {path: data for path, data in hub.repos[REPO].files.items() if path in staged} == staged
    assert summary.bytes < sum(map(len, files_of(source).values()))
    pulled(tmp_path)
    for part in ("data", "rejects"):
        rows = [{**row, "images": None} for row in rows_of(source, part)]
        assert rows_of(tmp_path / "pulled", part) == rows
    # With images again: the same dataset, another form of it.
    pushed(source)
    assert "data/s0.parquet" in hub.repos[REPO].files


def test_shards_without_images_are_of_a_size_that_can_be_fetched_again(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little room they take: by rows."""
    noise = random.Random(0)
    with open_writer(str(tmp_path / "source"), CONFIG) as store:
        for number in range(3):
            rows = [
                make_row(1000 * number + i, url="http://x/y", caption=noise.randbytes(2000).hex()) for i in range(400)
            ]
            write_shard(store, shard_of(f"s{number}", 400), rows)
    monkeypatch.setattr(compact_module, "_ROWS_WITHOUT_IMAGES", 1000)
    pushed(tmp_path / "source", without_images=True)
    pulled(tmp_path)
    sizes = [pq.read_metadata(file).num_rows for file in sorted((tmp_path / "pulled" / "data").iterdir())]
    assert sizes == [800, 400]


@pytest.mark.parametrize("url", [None, "", "file:///image.png"])
def test_images_that_nobody_could_fetch_are_not_left_out(hub: StandIn, tmp_path: Path, url: str | None) -> None:
    """Nor is a dataset pushed whose images were left out before."""
    with open_writer(str(tmp_path / "source"), CONFIG) as store:
        rows = [make_row(number, url=url if number < 5 else f"HTTPS://x/{number}") for number in range(7)]
        write_shard(store, shard_of("s", 8), [*rows, make_row(7, "rejected")])
    files = files_of(tmp_path / "source")
    with pytest.raises(UsageError, match=r"/source: without a URL .* 5 of 7 dialogues, .*: push it with its images"):
        pushed(tmp_path / "source", without_images=True)
    compact(tmp_path / "source", tmp_path / "bare", without_images=True)
    with pytest.raises(UsageError, match=r"/bare: without a URL .* are 5 of 7 dialogues, .*: push the one that has"):
        pushed(tmp_path / "bare")
    assert not hub.repos
    assert files_of(tmp_path / "source") == files
    pushed(tmp_path / "source")
    assert "The images are not part of it" not in hub.repos[REPO].files["README.md"].decode()


def test_the_card_says_how_many_dialogues_have_a_url(hub: StandIn, source: Path) -> None:
    pushed(source, without_images=True)
    said = "each row has their checksums, and 9 of the 9 dialogues have the URL of their image"
    assert said in hub.repos[REPO].files["README.md"].decode()


# Pull


def test_a_revision(hub: StandIn, source: Path, tmp_path: Path) -> None:
    old = pushed(make_dataset(tmp_path / "old", shards=2)).commit
    hub.repos[REPO].tags["v1"] = old
    pushed(source)
    assert pulled(tmp_path, revision="v1").commit == old
    assert pull(REPO, tmp_path / "by-hash", revision=old).shards == 2
    with pytest.raises(UsageError, match="no such --revision"):
        pull(REPO, tmp_path / "none", revision="v9")
    # What has grown meanwhile is fetched into the same folder.
    assert pulled(tmp_path).shards == 3
    with pytest.raises(UsageError, match="has shards that me/dialogues lacks, such as s2"):
        pulled(tmp_path, revision="v1")


def test_a_pull_goes_on_where_it_stopped(hub: StandIn, source: Path, tmp_path: Path) -> None:
    pushed(source)
    hub.failures.append(Failure(r"GET .*/resolve/.*/data/s2", 404))
    with pytest.raises(HubError):
        pulled(tmp_path)
    hub.failures.clear()
    there = {path for path in files_of(tmp_path / "pulled") if path.endswith(".parquet") and not path.startswith(".")}
    assert 0 < len(there) < 6
    hub.requests.clear()
    pulled(tmp_path)
    assert {path for path in there if hub.seen(rf"GET .*/resolve/.*/{path}")} == set()
    assert hub.seen(r"GET .*/resolve/.*/data/s2")
    assert set(files_of(tmp_path / "pulled")) == {*files_of(source), "README.md", "command.json"}


def test_a_full_disk(hub: StandIn, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(source)

    def full(url: str, file: Any, **options: Any) -> None:
        if "data/s1" in url:
            raise OSError(28, "No space left on device")
        http_get(url, file, **options)

    http_get = huggingface_hub.file_download.http_get
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.file_download, "http_get", full)
        with pytest.raises(DialogGenError, match=r"No space left on device\. .*; the same command goes on"):
            pulled(tmp_path)
    assert not (tmp_path / "pulled" / "data" / "s1.parquet").exists()
    pulled(tmp_path)


def test_a_damaged_file_is_found_and_fetched_again(hub: StandIn, source: Path, tmp_path: Path) -> None:
    pushed(source)
    pulled(tmp_path)
    file = tmp_path / "pulled" / "data" / "s1.parquet"
    good = file.read_bytes()
    file.write_bytes(good[:40] + bytes([good[40] ^ 1]) + good[41:])
    pulled(tmp_path)
    assert file.read_bytes() == good


def test_a_damaged_repository(hub: StandIn, source: Path, tmp_path: Path) -> None:
    pushed(source)
    files = dict(hub.repos[REPO].files)
    data = files["data/s1.parquet"]
    hub.repos[REPO].commit({**files, "data/s1.parquet": data[:40] + bytes([data[40] ^ 1]) + data[41:]})
    with pytest.raises(FailedCheckError, match=r"data/s1\.parquet has another checksum than promised"):
        pulled(tmp_path)
    hub.repos[REPO].commit(files)
    pulled(tmp_path)


def test_what_a_rewrite_put_in_place_of_others(hub: StandIn, source: Path, tmp_path: Path) -> None:
    pushed(source)
    pulled(tmp_path)
    with open_writer(str(source), CONFIG) as store:
        for manifest in list(store.manifests()):
            store.rewrite(manifest, lambda table: table, gates_sha256="g")
    pushed(source)
    pulled(tmp_path)
    assert set(files_of(tmp_path / "pulled")) == {*files_of(source), "README.md", "command.json"}


def test_a_pulled_dataset_is_repaired(hub: StandIn, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "pulled"
    pushed(source)
    pulled(tmp_path)
    whole = files_of(out)
    damaged = bytearray((out / "data/s1.parquet").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (out / "data/s1.parquet").write_bytes(damaged)
    (out / "shards/s2.json").unlink()
    hub.requests.clear()
    summary = repair(out)
    assert (summary.problem, summary.made) == (None, ["s1", "s2"])
    assert not hub.seen(r"GET .*/resolve/.*/data/s0")
    assert {path: data for path, data in files_of(out).items() if "set-aside" not in path} == whole
    assert bytes(damaged) in files_of(out / "set-aside").values()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"README.md": b"", "train.csv": b""}, "is no dialog-gen dataset"),
        ({**dataset_of(), "data/a/b.parquet": b""}, "holds 'data/a/b.parquet', which is no file of"),
        ({**dataset_of(), "data/../../b.parquet": b""}, "which is no file of"),
    ],
)
def test_a_repository_that_is_not_pulled(hub: StandIn, tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    holding(files)(hub)
    with pytest.raises(UsageError, match=message):
        pulled(tmp_path)
    assert not (tmp_path / "pulled").exists()


def test_no_such_repository(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there is no dataset me/dialogues on the Hub, or it is private"):
        pulled(tmp_path)
    holding(dataset_of(), private=True)(hub)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UsageError, match="or it is private"):
        pulled(tmp_path)


def test_a_folder_of_something_else(hub: StandIn, source: Path, tmp_path: Path) -> None:
    pushed(source)
    (tmp_path / "pulled").mkdir()
    (tmp_path / "pulled" / "thesis.doc").touch()
    with pytest.raises(UsageError, match="is no dataset folder and not empty"):
        pulled(tmp_path)
    shutil.rmtree(tmp_path / "pulled")
    make_dataset(tmp_path / "pulled", config={**CONFIG, "seed": 2})
    with pytest.raises(UsageError, match="another configuration than me/dialogues"):
        pulled(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        pull(REPO, source / "config.json")


def test_the_way_breaks_off_in_the_middle_of_a_listing(hub: StandIn, source: Path, tmp_path: Path) -> None:
    """The library would be content with the files it finds."""
    pushed(source)
    (tmp_path / "pulled" / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / "pulled" / ".cache" / "huggingface" / "x").touch()
    hub.failures.append(Failure("GET .*/tree/", 400, skip=1))
    with pytest.raises(HubError, match=r"files of me/dialogues did not come"):
        pulled(tmp_path)
    hub.failures.clear()
    pulled(tmp_path)


# All of it, as a user types it


@pytest.mark.slow
def test_the_commands_and_datasets(hub: StandIn, source: Path, tmp_path: Path) -> None:
    """In processes of their own, which know the Hub and the token from the environment."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
    }

    def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command], env=environment | variables, cwd=tmp_path, capture_output=True, text=True
        )

    dialog_gen = ("-P", "-m", "dialog_gen.cli.app")
    done = run(*dialog_gen, "push", "source", "--repo", REPO)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no Hugging Face token")
    done = run(*dialog_gen, "push", "source", "--repo", REPO, "--dry-run")
    assert (done.returncode, "licence is not stated: --licence" in done.stderr) == (0, True)
    done = run(*dialog_gen, "push", "source", "--repo", REPO, "--licence", "cc-by-4.0", HF_TOKEN=TOKEN)
    assert "licence is not stated" not in done.stderr
    assert (done.returncode, TOKEN in done.stdout + done.stderr) == (0, False), done.stderr
    assert f"{hub.url}/datasets/{REPO}: 9 images, 9 question-answer pairs" in done.stdout
    done = run(*dialog_gen, "pull", REPO, "--out", "pulled", "--json")
    assert json.loads(done.stdout)["commit"] == hub.repos[REPO].head, done.stderr
    code = (
        "import datasets, json\n"
        f"rows = datasets.load_dataset('{REPO}', split='train')\n"
        f"others = datasets.load_dataset('{REPO}', 'rejects', split='train')\n"
        "print(json.dumps([len(rows), rows[0]['texts'], rows[0]['images'][0].size, len(others), others[0]['reason']]))"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [
        *(9, [{"user": "What 0?", "assistant": "Answer 0."}], [4, 4], 3, "too_few_pairs")
    ]


def test_progress(hub: StandIn, source: Path, tmp_path: Path) -> None:
    heard = Heard()
    push(str(source), REPO, on_progress=heard)
    assert heard.ends() == {"verifying shards": (3, 3)}
    heard = Heard()
    push(DatasetFolder(str(source)), REPO, without_images=True, on_progress=heard)
    assert heard.ends() == {"merging shards": (3, 3), "verifying shards": (1, 1)}
    heard = Heard()
    pull(REPO, str(tmp_path / "pulled"), on_progress=heard)
    assert heard.ends() == {"verifying shards": (1, 1)}
