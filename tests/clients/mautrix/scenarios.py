"""What bridges do, one scenario each. They share a server and a bridge, so each makes its own users and rooms."""

import asyncio

from mautrix.api import Method, Path
from mautrix.errors import MExclusive, MForbidden, MNotFound, MUserInUse
from mautrix.types import EventType, Membership, RoomCreatePreset

from bridge import BOT, DOMAIN, ID, STEM, Person, fresh_name, refused


def bodies(events) -> list:
    """Senders and texts of the messages among events."""
    return [(e.sender, e.content.body) for e in events if e.type == EventType.ROOM_MESSAGE]


async def a_bridge_is_welcomed_and_pinged(stage):
    who = await stage.bot.whoami()
    assert who.user_id == stage.bot.mxid == f"@{BOT}:{DOMAIN}", who
    assert (await stage.bot.versions()).latest_version, "a version that mautrix knows"
    assert (await stage.bot.get_media_repo_config()).upload_size > 0
    txn_id = fresh_name("ping")
    await stage.service.ping_self(txn_id)
    assert txn_id in stage.service.pings, "the ping comes back before it is answered"
    await refused(stage.bot.appservice_ping("double-puppeting"), MForbidden)


async def puppets_join_and_talk(stage):
    alice = await Person.registered(stage, "alice")
    puppet = stage.puppet(fresh_name("grace"))
    room = await stage.bot.create_room(name="Across the strait", invitees=[alice.mxid])
    await alice.join_room(room)
    await puppet.ensure_joined(room)  # registers it; the bot has to invite it first
    await puppet.set_displayname("Grace, from over there")
    hello = await puppet.send_text(room, "hello from the other side")
    assert [e.event_id for e in await alice.newest(room, 1)] == [hello]
    assert (await alice.get_event(room, hello)).sender == puppet.mxid
    members = await alice.get_joined_members(room)
    assert set(members) == {alice.mxid, stage.bot.mxid, puppet.mxid}
    assert members[puppet.mxid].displayname == "Grace, from over there"

    answer = await alice.send_text(room, "good to hear you")
    told = await stage.until_told(answer)
    assert (told.sender, told.content.body, told.room_id) == (alice.mxid, "good to hear you", room)
    await puppet.react(room, answer, "❤")
    await puppet.mark_read(room, answer)
    await puppet.redact(room, hello, reason="said too much")
    gone = await alice.api.request(Method.GET, Path.v3.rooms[room].event[hello])
    assert gone["content"] == {} and gone["unsigned"]["redacted_because"]["sender"] == puppet.mxid

    # The bridge hears of what itself has done, too, each once and in the order of the room.
    order = [e.event_id for e in await alice.newest(room)]
    await stage.until_told(order[-1])
    assert [e.event_id for e in stage.told(room)] == order


async def what_is_old_keeps_its_time(stage):
    alice = await Person.registered(stage, "alice")
    room = await stage.bot.create_room(invitees=[alice.mxid])
    await alice.join_room(room)
    puppet = stage.puppet(fresh_name("grace"))
    old = await puppet.send_text(room, "written long ago", timestamp=1234567890123)
    assert (await alice.get_event(room, old)).timestamp == 1234567890123
    now = await puppet.send_text(room, "written now")
    assert (await alice.get_event(room, now)).timestamp > 1600000000000


async def names_of_the_bridge_are_the_bridges(stage):
    alice = await Person.registered(stage, "alice")
    register = lambda name: alice.api.request(
        Method.POST, Path.v3.register, {"username": name, "password": "secret words", "auth": {"type": "m.login.dummy"}}
    )
    await refused(register(fresh_name(STEM)), MExclusive)
    await refused(register(BOT), MExclusive)
    room = await alice.create_room()
    await refused(alice.add_room_alias(room, fresh_name(STEM)), MExclusive)
    await refused(alice.create_room(alias_localpart=fresh_name(STEM)), MExclusive)

    # And what is not the bridge's is not.
    theirs = stage.bot.user(f"@{fresh_name('somebody')}:{DOMAIN}")
    await refused(theirs.ensure_registered(), MExclusive)
    await refused(stage.bot.user(alice.mxid).whoami(), MForbidden)
    await refused(stage.bot.add_room_alias(room, fresh_name("elsewhere")), MExclusive)
    unborn = stage.puppet(fresh_name("unborn"))
    await refused(unborn.whoami(), MForbidden)
    await unborn.ensure_registered()
    assert (await unborn.whoami()).user_id == unborn.mxid
    await refused(unborn._register(), MUserInUse)


async def a_bridge_makes_rooms_that_are_asked_for(stage):
    alice = await Person.registered(stage, "alice")
    local = fresh_name(f"{STEM}harbour")
    alias = f"#{local}:{DOMAIN}"
    made = []

    async def knows_alias(asked):
        if asked != alias:
            return None
        made.append(await stage.bot.create_room(alias_localpart=local, preset=RoomCreatePreset.PUBLIC))
        return {"made": "yes"}

    stage.knows_alias = knows_alias
    room = await alice.join_room(alias)
    assert [room] == made and alias in stage.aliases_asked
    assert (await alice.resolve_room_alias(alias)).room_id == room
    assert stage.aliases_asked.count(alias) == 1, "who is known is not asked for"
    nowhere = f"#{fresh_name(STEM)}:{DOMAIN}"
    await refused(alice.resolve_room_alias(nowhere), MNotFound)
    assert nowhere in stage.aliases_asked
    outside = f"#{fresh_name('outside')}:{DOMAIN}"
    await refused(alice.resolve_room_alias(outside), MNotFound)
    assert outside not in stage.aliases_asked


async def a_bridge_makes_users_that_are_asked_for(stage):
    alice = await Person.registered(stage, "alice")
    ghost = stage.puppet(fresh_name("ghost"))

    async def knows_user(asked):
        if asked == ghost.mxid:
            await ghost.ensure_registered()
            await ghost.set_displayname("Boo")
        return asked == ghost.mxid and {"made": "yes"}

    stage.knows_user = knows_user
    room = await alice.create_room(invitees=[ghost.mxid])
    assert ghost.mxid in stage.users_asked
    invited = lambda: [e for e in stage.told(room, EventType.ROOM_MEMBER) if e.state_key == ghost.mxid]
    (invite,) = await stage.until(invited, "the invite")
    assert (invite.sender, invite.content.membership) == (alice.mxid, Membership.INVITE)
    await ghost.join_room_by_id(room)
    members = await alice.get_joined_members(room)
    assert members[ghost.mxid].displayname == "Boo"

    # From its first member's invite on, the bridge is told of what happens in the room.
    said = await alice.send_text(room, "who is there?")
    await stage.until_told(said)
    await ghost.leave_room(room)
    secret = await alice.send_text(room, "now we are among ourselves")
    await stage.until_told(await stage.bot.send_text(await stage.bot.create_room(), "a room of one's own"))
    assert secret not in [e.event_id for e in stage.told(room)]


async def typing_and_receipts_come_along(stage):
    alice = await Person.registered(stage, "alice")
    room = await stage.bot.create_room(invitees=[alice.mxid])
    await alice.join_room(room)
    said = await stage.bot.send_text(room, "read this")
    typing = lambda users: lambda: [
        e
        for e in stage.ephemeral
        if e.type == EventType.TYPING and e.room_id == room and e.content.user_ids == users
    ]
    await alice.set_typing(room, timeout=20000)
    await stage.until(typing([alice.mxid]), "typing")
    await alice.set_typing(room, timeout=0)
    await stage.until(typing([]), "the end of typing")
    await alice.send_receipt(room, said)
    receipts = lambda: [e for e in stage.ephemeral if e.type == EventType.RECEIPT and e.room_id == room]
    (receipt,) = await stage.until(receipts, "the receipt")
    assert [list(by_kind.values())[0].keys() for by_kind in receipt.content.values()] == [{alice.mxid: 0}.keys()]
    assert list(receipt.content) == [said]

    puppet = stage.puppet(fresh_name("grace"))
    await puppet.set_typing(room, timeout=20000)
    await stage.until(typing([puppet.mxid]), "the puppet's typing")


async def somebody_who_is_here_is_spoken_for(stage):
    alice = await Person.registered(stage, "alice")
    double = stage.bot.user(alice.mxid, "double-puppeting-as-token", as_token=True)
    await stage.state_store.registered(alice.mxid)
    assert (await double.whoami()).user_id == alice.mxid
    room = await stage.bot.create_room(invitees=[alice.mxid])
    await double.ensure_joined(room)
    said = await double.send_text(room, "sent from the other network")
    event = await alice.get_event(room, said)
    assert event.sender == alice.mxid
    assert event.content["fi.mau.double_puppet_source"] == ID
    await refused(stage.bot.user(f"@nobody:{DOMAIN}", "double-puppeting-as-token", as_token=True).whoami(), MForbidden)


async def puppets_have_pictures_and_send_them(stage):
    alice = await Person.registered(stage, "alice")
    puppet = stage.puppet(fresh_name("grace"))
    data = bytes(range(256)) * 512
    uri = await puppet.upload_media(data, mime_type="application/x-thing", filename="thing")
    await puppet.set_avatar_url(uri)
    assert (await alice.get_profile(puppet.mxid)).avatar_url == uri
    assert await alice.download_media(uri) == data
    room = await stage.bot.create_room(invitees=[alice.mxid])
    await alice.join_room(room)
    sent = await puppet.send_file(room, uri, file_name="thing")
    assert (await alice.get_event(room, sent)).content.url == uri


async def a_room_full_of_puppets(stage):
    alice = await Person.registered(stage, "alice")
    room = await stage.bot.create_room(preset=RoomCreatePreset.PUBLIC)
    puppets = [stage.puppet(fresh_name("fish")) for _ in range(20)]
    await asyncio.gather(*(puppet.ensure_joined(room) for puppet in puppets))
    await alice.join_room(room)
    await asyncio.gather(*(puppet.send_text(room, f"blub {n}") for n, puppet in enumerate(puppets)))
    last = await alice.send_text(room, "quiet, please")
    await stage.until_told(last)
    seen = await alice.newest(room, 100)
    assert sorted(bodies(seen)[:-1]) == sorted((p.mxid, f"blub {n}") for n, p in enumerate(puppets))
    assert [e.event_id for e in stage.told(room)] == [e.event_id for e in seen]
    joined = {p.mxid for p in puppets} | {alice.mxid, stage.bot.mxid}
    assert set(await alice.get_joined_members(room)) == joined
    (puppet, *_) = puppets
    await stage.bot.kick_user(room, puppet.mxid, "out of the water")
    await refused(alice.get_state_event(room, EventType.find("org.example.nothing")), MNotFound)
    assert (await alice.get_state_event(room, EventType.ROOM_MEMBER, puppet.mxid)).membership == Membership.LEAVE


ALL = [
    a_bridge_is_welcomed_and_pinged,
    puppets_join_and_talk,
    what_is_old_keeps_its_time,
    names_of_the_bridge_are_the_bridges,
    a_bridge_makes_rooms_that_are_asked_for,
    a_bridge_makes_users_that_are_asked_for,
    typing_and_receipts_come_along,
    somebody_who_is_here_is_spoken_for,
    puppets_have_pictures_and_send_them,
    a_room_full_of_puppets,
]
