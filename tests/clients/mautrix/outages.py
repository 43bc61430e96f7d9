"""Bridge and server go away. Each of these scenarios has both for itself."""

import signal

from bridge import Person


async def _one_room(stage):
    alice = await Person.registered(stage, "alice")
    room = await stage.bot.create_room(invitees=[alice.mxid])
    await alice.join_room(room)
    await stage.until_told(await alice.send_text(room, "before"))
    return alice, room


async def _nothing_is_lost(stage, alice, room):
    """The bridge was told of everything in the room, once and in order."""
    last = await alice.send_text(room, "after")
    await stage.until_told(last)
    assert [e.event_id for e in stage.told(room)] == [e.event_id for e in await alice.newest(room, 100)]


async def a_bridge_that_was_away_is_told_everything(stage):
    alice, room = await _one_room(stage)
    await stage.close_bridge()
    said = [await alice.send_text(room, f"while nobody listens {n}") for n in range(20)]
    told = len(stage.events)
    await stage.open_bridge()
    await stage.until_told(said[-1])
    assert [e.event_id for e in stage.events[told:]] == said
    await _nothing_is_lost(stage, alice, room)


async def a_killed_server_tells_on(stage):
    alice, room = await _one_room(stage)
    await stage.close_bridge()
    said = [await alice.send_text(room, f"before the storm {n}") for n in range(5)]
    assert await stage.server.stop(signal.SIGKILL) != 0
    await stage.server.start()
    said += [await alice.send_text(room, f"after the storm {n}") for n in range(5)]
    await stage.open_bridge()
    await stage.until_told(said[-1])
    await _nothing_is_lost(stage, alice, room)

    # Killed again, with the bridge listening.
    said = [await alice.send_text(room, f"in the storm {n}") for n in range(5)]
    await stage.server.stop(signal.SIGKILL)
    await stage.server.start()
    await stage.until_told(said[-1])
    await _nothing_is_lost(stage, alice, room)


ALL = [a_bridge_that_was_away_is_told_everything, a_killed_server_tells_on]
