"""The record of what a command ran with."""

import shutil
import subprocess

import pytest

import hiera_video
from hiera_video.runtime.environment import git_commit


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_our_checkout_and_not_of_one_around_the_package(
    tmp_path, monkeypatch
):
    def git(*arguments):
        names = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *names, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    git("commit", "--allow-empty", "-m", "x")
    head = git("rev-parse", "HEAD")
    for folder, expected in (("", head), ("venv/site-packages", None)):
        package = tmp_path / folder / "hiera_video"
        package.mkdir(parents=True)
        monkeypatch.setattr(hiera_video, "__file__", str(package / "__init__.py"))
        assert git_commit() == expected
