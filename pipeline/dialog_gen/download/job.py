"""What the supervisor asks of img2dataset; travels to the worker processes."""

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from dialog_gen.download.fetch import FetchPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadOptions:
    """How URLs are fetched; nothing of it but `shard_size` shapes the output folder."""

    policy: FetchPolicy = field(default_factory=FetchPolicy)
    shard_size: int = 1024
    """URLs a tar."""
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    threads: int = 64
    """Requests under way at a time, in each process."""
    stall_s: float | None = None
    """Where no URL was done for so long, img2dataset is started anew. Default: twice what the slowest URL may take, but
    at least 300."""

    @property
    def patience_s(self) -> float:
        """`stall_s` or its default."""
        return max(300, 2 * self.policy.longest_s) if self.stall_s is None else self.stall_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One URL list to download into one folder of tars."""

    urls: str
    """Folder of Parquet files with the columns url and caption, each but the last with a multiple of the shard size."""
    images: str
    duplicates: str
    """See `dialog_gen.download.duplicates`."""
    options: DownloadOptions

    def to_json(self) -> str:
        """For the command line of the process that runs img2dataset."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """The job that `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        options = fields.pop("options")
        policy = FetchPolicy(**options.pop("policy"))
        return cls(**fields, options=DownloadOptions(policy=policy, **options))
