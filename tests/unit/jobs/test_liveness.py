"""Signs of life on one machine: a lock that ends with its process."""

from __future__ import annotations

import subprocess
import sys

from nagaya.jobs.liveness import LockedFiles

_LIVE = """
import sys, pathlib
from nagaya.jobs.liveness import LockedFiles
servers = LockedFiles(pathlib.Path(sys.argv[1]))
servers.enter("other")
print("in", flush=True)
sys.stdin.read()
"""


def test_a_killed_server_is_dead_at_once_and_a_living_one_is_not(tmp_path):
    servers = LockedFiles(tmp_path / "servers")
    servers.enter("one")
    other = subprocess.Popen(
        [sys.executable, "-c", _LIVE, str(tmp_path / "servers")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdin is not None
    assert other.stdout is not None
    with other:
        assert other.stdout.readline() == b"in\n"
        assert servers.dead("one") == []
        other.kill()
        other.wait()
    assert servers.dead("one") == ["other"]
    assert servers.dead("one") == ["other"], "until it is buried, nobody may forget it"
    servers.bury("other")
    servers.bury("other")
    assert servers.dead("one") == []
    servers.leave("one", unfinished=False)


def test_a_server_that_left_something_unfinished_is_found(tmp_path):
    servers, others = LockedFiles(tmp_path), LockedFiles(tmp_path)
    servers.enter("one")
    others.enter("two")
    assert servers.renew("one")
    servers.leave("one", unfinished=True)
    assert not servers.renew("one")
    assert others.dead("two") == ["one"]
    others.leave("two", unfinished=False)
    others.leave("two", unfinished=False)
    assert LockedFiles(tmp_path).dead("three") == ["one"]


def test_a_server_that_is_just_coming_to_life_is_not_taken_for_dead(tmp_path):
    (tmp_path / ".new").touch()
    assert LockedFiles(tmp_path).dead("one") == []
