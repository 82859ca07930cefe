"""Row 19: a stream of notices resumed with a foreign ``Last-Event-ID``; and what the standard asks of such a stream."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from nagaya.errors import SessionClosed
from support.planted import Planted
from support.server import RunningServer
from support.sse import SseEvent, SseReader


@contextmanager
def stream(client: httpx.Client, **headers: str) -> Iterator[tuple[httpx.Response, Iterator[SseEvent], SseReader]]:
    reader = SseReader()
    with client.stream("GET", "/v1/events", headers=headers, params={"from": "earliest"}) as reply:
        yield reply, reader.read(line.rstrip("\r\n") for line in reply.iter_lines()), reader


def in_background(client: httpx.Client, text: str) -> str:
    """A response in the background, which tells its user that it began and ended."""
    return client.post("/v1/responses", json={"input": text, "background": True}).raise_for_status().json()["id"]


def taken(events: Iterator[SseEvent], count: int) -> list[SseEvent]:
    return [next(events) for _ in range(count)]


@pytest.fixture(scope="module")
def told(acme: Planted) -> list[SseEvent]:
    """The notices of one run of a user of acme's."""
    in_background(acme.as_other, f"Say {acme.canary}")
    with stream(acme.as_other) as (_, events, _):
        found = []
        for event in events:
            found.append(event)
            if event.type == "run.finished":
                return found
    raise AssertionError("the run did not end")


def test_the_stream_is_as_the_standard_has_it(acme: Planted, told: list[SseEvent]):
    assert [event.type for event in told] == ["run.started", "run.step", "run.finished"]
    with stream(acme.as_other) as (reply, events, reader):
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"] == "no-store"
        taken(events, 1)
        assert reader.retry_ms == 2000
    assert len({event.id for event in told}) == 3


def test_it_goes_on_after_the_last_event_that_was_seen(acme: Planted, told: list[SseEvent]):
    with stream(acme.as_other, **{"last-event-id": told[0].id}) as (_, events, _):
        assert [(event.type, event.data) for event in taken(events, 2)] == [(e.type, e.data) for e in told[1:]]


def test_a_reader_that_was_cut_off_before_the_first_notice_misses_none(acme: Planted, told: list[SseEvent]):
    reader = SseReader()
    with acme.as_other.stream("GET", "/v1/events") as reply:  # from now on
        lines = (line.rstrip("\r\n") for line in reply.iter_lines())
        for line in lines:
            list(reader.read([line]))
            if reader.last_id:
                break
    response = in_background(acme.as_other, "Hello?")
    with stream(acme.as_other, **{"last-event-id": reader.last_id}) as (_, events, _):
        first = next(events)
    assert first.type == "run.started"
    assert response in first.data


def test_a_foreign_event_id_answers_like_one_that_is_not_there(acme: Planted, globex: Planted, told: list[SseEvent]):
    absent = acme.as_other.get("/v1/events", headers={"last-event-id": "bm90aGluZw"})
    assert absent.status_code == 404
    for client in (globex.as_user, acme.as_user, acme.as_admin):
        foreign = client.get("/v1/events", headers={"last-event-id": told[0].id})
        assert (foreign.status_code, foreign.json()["error"]) == (404, absent.json()["error"])


def test_nobody_elses_notices_are_in_it(acme: Planted, globex: Planted, told: list[SseEvent]):
    in_background(globex.as_user, "Hello?")
    with stream(globex.as_user) as (_, events, _):
        found = taken(events, 2)
    ids = {event.data for event in told}
    assert not ids & {event.data for event in found}
    assert acme.canary not in "".join(event.data for event in [*found, *told])


def test_the_stream_ends_when_the_key_is_revoked(own_server: RunningServer):
    own_server.tenant("events-co")
    made = own_server.operate(
        "POST", "/admin/api-keys", {"tenant": "events-co", "user": "mio", "role": "user", "name": "k"}
    )
    client = own_server.client(made["api_key"])
    ended = threading.Event()
    opened = threading.Event()
    last: list[str] = []

    def read() -> None:
        with stream(client, **{"accept-language": "ja"}) as (reply, _, _):
            for line in reply.iter_lines():
                opened.set()
                last.append(line)
        ended.set()

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    assert opened.wait(30)
    own_server.operate("DELETE", f"/admin/api-keys/{made['key_id']}", tenant="events-co")
    assert ended.wait(40), "still open 40 s after its key was revoked"
    said = json.loads(last[last.index("event: error") + 1].removeprefix("data: "))
    assert (said["code"], said["message"]) == ("session_closed", SessionClosed().message("ja"))


def test_an_unknown_place_to_begin_is_refused(acme: Planted):
    reply = acme.as_user.get("/v1/events", params={"from": "yesterday"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "from")
