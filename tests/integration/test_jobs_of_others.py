"""Kinds of background work that another package brings: known to every server, loaded late, never in place of ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nagaya import Nagaya
from nagaya.jobs.driver import JobState
from nagaya.lifecycle.job_kinds import KEY_RESEAL
from nagaya.settings import Queue, Settings

PATIENT_S = 60.0
WORK = """
async def count(job):
    found = await job.session.records.scan(limit=100)
    assert job.tenant.id == "acme", job.tenant.id
    job.progress(len(found), len(found))


async def wipe(job):
    raise AssertionError("it took the place of the platform's own work")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An installed package with entry points."""
    site = tmp_path / "site"
    info = site / "other_work-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-work\nVersion: 1.0\n")
    points = f"[nagaya.jobs]\nrecords.count = other_work:count\n{KEY_RESEAL} = other_work:wipe\n"
    (info / "entry_points.txt").write_text(points)
    (site / "other_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(site)
    yield "other_work"
    sys.modules.pop("other_work", None)


async def test_a_packages_work_is_done_and_the_platforms_own_stays_its_own(tmp_path: Path, package: str) -> None:
    queues = (Queue(url="sqs://ap-northeast-1/1/x", kinds=("records.count", KEY_RESEAL)),)
    async with Nagaya.open(settings=Settings(data=str(tmp_path / "data"), queues=queues)) as nagaya:
        acme = await nagaya.tenants.create("acme", name="Acme")
        nagaya.queues.check()
        assert package not in sys.modules
        jobs = [await nagaya.jobs.enqueue(acme, kind) for kind in ("records.count", KEY_RESEAL)]
        await nagaya.jobs.start()
        ended = [(await nagaya.jobs.wait(acme, job, deadline_s=PATIENT_S)).state for job in jobs]
        assert ended == [JobState.DONE] * 2
        assert package in sys.modules
