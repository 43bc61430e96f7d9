"""The server goes away in the middle of a long poll. Each of these scenarios has a server of its own."""

import asyncio
import io
import signal
import time

import nio

from person import Person, expect, people
from scenarios import room_of


async def _restart_in_a_long_poll(server, how: signal.Signals):
    """People talk while the server goes away and comes back; clients go on by themselves and miss nothing."""
    alice, bob = await people(server, "alice", "bob")
    room = await room_of(alice, bob)
    picture = bytes(range(256)) * 64
    upload, _ = await alice.client.upload(io.BytesIO(picture), "application/x-thing", filesize=len(picture))
    uri = expect(upload, nio.UploadResponse).content_uri
    before = [await alice.say(room, f"before {n}") for n in range(5)]
    await bob.until_event(room, before[-1])
    token = bob.client.next_batch
    await bob.sync()

    poll = asyncio.create_task(bob.sync(timeout_ms=30000))
    await asyncio.sleep(0.5)
    assert not poll.done(), "the poll should be waiting when the server goes away"
    started = time.monotonic()
    code = await server.stop(how)
    stopped_s = time.monotonic() - started
    if how == signal.SIGTERM:
        assert code == 0, f"SIGTERM ended with {code}"
        assert stopped_s < 2, f"SIGTERM took {stopped_s:.2f} s with a poll open"

    # Said while nobody is there: the client tries again until somebody is.
    waiting = asyncio.create_task(alice.say(room, "into the void", txn_id="void"))
    await asyncio.sleep(0.3)
    started_s = await server.start()
    print(f"nio: after {how.name}: stopped in {stopped_s:.2f} s, ready again in {started_s:.2f} s", flush=True)
    void = await asyncio.wait_for(waiting, 20)
    assert await alice.say(room, "into the void", txn_id="void") == void

    # The poll that was cut goes on; with its event, or empty (a stopping server may have answered it).
    await asyncio.wait_for(poll, 40)
    await bob.until_event(room, void)
    after = [await alice.say(room, f"after {n}") for n in range(5)]
    await bob.until_event(room, after[-1])
    ids = [e.event_id for e in bob.timelines[room]]
    assert len(ids) == len(set(ids)), "an event came twice"
    wanted = before + [void] + after
    assert [i for i in ids if i in set(wanted)] == wanted, "something was lost or out of order"

    assert expect(await bob.client.download(uri), nio.MemoryDownloadResponse).body == picture

    # The old token works on the new server, and so does a client that starts from nothing.
    replay = bob.restored()
    replay.client.next_batch = token
    await replay.sync()
    assert [e.event_id for e in replay.timelines[room]] == [void] + after
    fresh = await Person(server, bob.name).log_in()
    await fresh.sync()
    assert [e.event_id for e in fresh.timelines[room]][-len(after) :] == after


async def restart_by_sigkill(server):
    await _restart_in_a_long_poll(server, signal.SIGKILL)


async def restart_by_sigterm(server):
    await _restart_in_a_long_poll(server, signal.SIGTERM)


ALL = [restart_by_sigkill, restart_by_sigterm]
