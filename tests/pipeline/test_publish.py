"""`dialog-gen push` without a network, with thumbnails, and into storage buckets."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import Cli
from helpers.hub import TOKEN, Failure, StandIn, replaced_hub
from helpers.rows import files_of, make_row, shard_of, write_shard
from PIL import Image

from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.verify import verify
from dialog_gen.dataset.writer import open_writer
from dialog_gen.publish.bucket import Bucket
from dialog_gen.publish.card import card
from dialog_gen.publish.hub import HubError
from dialog_gen.publish.pull import pull
from dialog_gen.publish.push import push

REPO, BUCKET = "me/dialogues", "hf://buckets/me/store"


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with replaced_hub(tmp_path / "hf-home", monkeypatch) as stand_in:
        yield stand_in


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "source")


def make_dataset(out: Path, *, shards: int = 2, **config: Any) -> Path:
    with open_writer(str(out), {"schema_version": 3, "model": "m", "seed": 1, **config}) as store:
        for shard in range(shards):
            rows = [
                make_row(10 * shard + n, "rejected" if n == 2 else "accepted", url=f"https://x.example/{shard}/{n}")
                for n in range(4)
            ]
            write_shard(store, shard_of(f"s{shard}", 4), rows)
        store.put_json("run.json", {"run": 1})
    return out


@pytest.mark.parametrize("repo", [REPO, BUCKET])
def test_a_dry_run_asks_nobody_and_needs_no_token(
    hub: StandIn, source: Path, dialog_gen_cli: Cli, repo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    before = files_of(source)
    ended = dialog_gen_cli("push", source, "--repo", repo, "--dry-run")
    assert ended.code == 0, ended.err
    assert "6 images, 6 question-answer pairs" in ended.out
    assert "nothing was sent" in ended.out
    assert (hub.requests, hub.repos, hub.buckets) == ([], {}, {})
    assert files_of(source) == before
    assert "no Hugging Face token" in dialog_gen_cli("push", source, "--repo", repo).mistake


@pytest.mark.parametrize("options", [{}, {"without_images": True}, {"thumbnails": True}])
def test_a_dry_run_says_what_a_push_sends(hub: StandIn, source: Path, options: dict[str, Any]) -> None:
    tried, done = push(source, REPO, dry_run=True, **options), push(source, REPO, **options)
    assert (tried.files, tried.bytes, tried.images, tried.pairs) == (done.files, done.bytes, done.images, done.pairs)
    assert (tried.commit, done.commit) == (None, hub.repos[REPO].head)
    assert done.bytes == sum(map(len, hub.repos[REPO].files.values()))
    assert ".publish" not in {path.name for path in source.iterdir()}


def test_a_dry_run_makes_the_same_checks(source: Path) -> None:
    next((source / "data").iterdir()).write_bytes(b"PAR1")
    with pytest.raises(UsageError):
        push(source, REPO, dry_run=True)


@pytest.mark.parametrize("without_images", [False, True])
def test_the_card_is_the_one_that_is_pushed(hub: StandIn, source: Path, without_images: bool) -> None:
    push(source, REPO, licence="mit", without_images=without_images)
    text = card(source, REPO, licence="mit", without_images=without_images)
    assert hub.repos[REPO].files["README.md"].decode() == text


def test_thumbnails_are_pushed_on_request_only(hub: StandIn, source: Path, tmp_path: Path) -> None:
    push(source, REPO)
    assert "thumbnails.webp" not in hub.repos[REPO].files
    push(source, REPO, thumbnails=True)
    files = hub.repos[REPO].files
    with Image.open(BytesIO(files["thumbnails.webp"])) as picture:
        assert picture.format == "WEBP"
    assert "](thumbnails.webp)" in files["README.md"].decode()
    pull(REPO, tmp_path / "pulled")
    assert verify(DatasetFolder(str(tmp_path / "pulled"))).problems == []
    push(source, REPO)
    assert "thumbnails.webp" not in hub.repos[REPO].files


def test_no_thumbnails_of_images_that_are_left_out(hub: StandIn, source: Path, dialog_gen_cli: Cli) -> None:
    ended = dialog_gen_cli("push", source, "--repo", REPO, "--without-images", "--thumbnails")
    assert "--thumbnails shows images" in ended.mistake
    assert hub.repos == {}


# Buckets


@pytest.mark.parametrize("folder", ["", "sets/photos"])
def test_a_bucket_holds_the_dataset(hub: StandIn, source: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{BUCKET}/{folder}".rstrip("/")
    summary = push(source, f"{url}/" if folder else url, licence="mit")
    assert (summary.url, summary.commit, summary.images) == (url, None, 6)
    prefix = f"{folder}/" if folder else ""
    there = {path.removeprefix(prefix): data for path, data in hub.buckets["me/store"].items()}
    wanted = {name: data for name, data in files_of(source).items() if name != "command.json"}
    assert {**there, "README.md": wanted["README.md"]} == wanted
    text = there["README.md"].decode()
    assert f'load_dataset("parquet", data_files="{url}/data/*.parquet"' in text
    assert "dialog-gen pull" not in text
    # Every command reads it where it is.
    verdict = verify(DatasetFolder(url))
    assert (verdict.problems, verdict.accepted) == ([], 6)


def test_a_bucket_loses_what_is_no_longer_there_and_keeps_other_folders(
    hub: StandIn, source: Path, tmp_path: Path
) -> None:
    hub.buckets["me/store"] = {"photos-2/x": b"1", "y": b"2"}
    push(source, f"{BUCKET}/photos")
    push(make_dataset(tmp_path / "smaller", shards=1), f"{BUCKET}/photos")
    files = hub.buckets["me/store"]
    assert (files["photos-2/x"], files["y"]) == (b"1", b"2")
    assert {path for path in files if path.startswith("photos/")} == {
        f"photos/{name}"
        for name in ("README.md", "config.json", "run.json", "data/s0.parquet", "rejects/s0.parquet", "shards/s0.json")
    }


def test_manifests_come_after_their_rows_and_deletions_last(hub: StandIn, source: Path, tmp_path: Path) -> None:
    push(source, BUCKET)
    assert hub.seen("/batch") == [
        "POST /api/buckets/me/store/batch +1 -0",
        "POST /api/buckets/me/store/batch +4 -0",
        "POST /api/buckets/me/store/batch +4 -0",
    ]
    hub.requests.clear()
    push(make_dataset(tmp_path / "smaller", shards=1), BUCKET)
    assert hub.seen("/batch")[-1] == "POST /api/buckets/me/store/batch +0 -3"


@pytest.mark.parametrize("status", [500, 429])
def test_a_bucket_that_fails_for_a_moment(hub: StandIn, source: Path, status: int) -> None:
    hub.failures.append(Failure("/batch", status, times=2))
    push(source, BUCKET)
    assert "config.json" in hub.buckets["me/store"]


def test_a_bucket_that_keeps_failing(hub: StandIn, source: Path) -> None:
    hub.failures.append(Failure(r"/batch \+4", 503, skip=1))
    with pytest.raises(HubError, match="Try again") as caught:
        push(source, BUCKET)
    assert TOKEN not in str(caught.value)
    assert not any(path.startswith("shards/") for path in hub.buckets["me/store"])
    hub.failures.clear()
    push(source, BUCKET)
    assert "shards/s0.json" in hub.buckets["me/store"]


def test_other_content_of_a_bucket_is_not_replaced(hub: StandIn, source: Path, tmp_path: Path) -> None:
    hub.buckets["me/store"] = {"weights.bin": b"1"}
    with pytest.raises(UsageError, match=r"holds no dialog-gen dataset but 'weights.bin'.*--replace"):
        push(source, BUCKET)
    push(source, f"{BUCKET}/below")
    other = make_dataset(tmp_path / "other", model="another")
    with pytest.raises(UsageError, match=r"holds another dataset \(model: 'm' there, 'another' here\)"):
        push(other, f"{BUCKET}/below")
    push(other, f"{BUCKET}/below", replace=True)
    assert b"another" in hub.buckets["me/store"]["below/config.json"]
    push(source, BUCKET, replace=True)
    assert "weights.bin" not in hub.buckets["me/store"]
    with pytest.raises(UsageError, match="--private is for new buckets"):
        push(source, BUCKET, private=True)


@pytest.mark.parametrize(
    "url", ["s3://me/store", "hf://datasets/me/x", "hf://buckets/me", "hf://buckets/me/a b", f"{BUCKET}/a/../b"]
)
def test_wrong_urls(source: Path, url: str) -> None:
    with pytest.raises(UsageError):
        push(source, url)


def test_parts_of_a_bucket_url() -> None:
    assert Bucket.of("me/x") is None
    assert Bucket.of(f"{BUCKET}/") == Bucket("me/store")
    assert Bucket.of(f"{BUCKET}/a/b/") == Bucket("me/store", "a/b")
