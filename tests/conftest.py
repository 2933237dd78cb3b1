"""For all tests. That it is here puts this folder on the path: what tests share is imported from `helpers`."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# The same examples in every run, and no failure because a machine is slow.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """What tests write need not outlive a power cut; most of their time would go there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
