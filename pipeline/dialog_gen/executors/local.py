"""The executor `local`: one worker, which is this process."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dialog_gen.executors.base import EXECUTORS, Job, Report

if TYPE_CHECKING:
    from dialog_gen.sources.base import InputShard


class LocalExecutor:
    """Runs the job in this process."""

    description = "one engine, started by this process"

    def run(self, job: Job, shards: "Iterator[InputShard]", report: Report) -> None:
        """Runs the job on all shards, one after another; raises what `Job.run` raises."""
        job.run(shards, report)


EXECUTORS.register("local")(LocalExecutor())
