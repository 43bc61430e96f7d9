"""What people do with a client, one scenario each. They share a server, so each makes its own accounts and rooms."""

import asyncio
import io
import struct
import zlib

import nio
from nio import RoomPreset, RoomVisibility

from person import Person, expect, fresh_name, path_of, people


async def room_of(owner: Person, *members: Person, **options) -> str:
    """A private room that everybody named has joined."""
    options.setdefault("preset", RoomPreset.private_chat)
    room = expect(await owner.client.room_create(invite=[m.id for m in members], **options), nio.RoomCreateResponse)
    for member in members:
        expect(await member.client.join(room.room_id), nio.JoinResponse)
    return room.room_id


def newest(person: Person, room_id: str, type: str, key: str = ""):
    """The newest state event of that type and key a person was shown."""
    events = person.state_seen.get(room_id, []) + person.timelines.get(room_id, [])
    of_type = [e for e in events if e.source.get("type") == type and e.source.get("state_key") == key]
    return of_type[-1] if of_type else None


async def register_login_and_token_restore(server):
    (alice,) = await people(server, "alice")
    assert alice.id == f"@{alice.name}:{alice.id.split(':', 1)[1]}"

    second = await Person(server, alice.name).log_in()
    assert second.client.device_id != alice.client.device_id
    await second.sync()
    devices = expect(await alice.client.devices(), nio.DevicesResponse)
    assert {d.id for d in devices.devices} == {alice.client.device_id, second.client.device_id}

    restored = alice.restored()
    who = expect(await restored.client.whoami(), nio.WhoamiResponse)
    assert (who.user_id, who.device_id) == (alice.id, alice.client.device_id)

    wrong = Person(server, alice.name)
    refused = expect(await wrong.client.login("not the password"), nio.LoginError)
    assert refused.status_code == "M_FORBIDDEN", refused
    taken = await Person(server, alice.name).client.register(alice.name, "anything at all")
    assert taken.status_code == "M_USER_IN_USE", taken

    token = second.client.access_token
    expect(await second.client.logout(), nio.LogoutResponse)
    expect(await alice.client.whoami(), nio.WhoamiResponse)
    second.client.access_token = token  # the library has dropped it
    assert (await second.raw("GET", path_of("account", "whoami"), status=401))["errcode"] == "M_UNKNOWN_TOKEN"


async def private_room_invite_and_join(server):
    alice, bob, eve = await people(server, "alice", "bob", "eve")
    await bob.sync()
    options = {"preset": RoomPreset.private_chat, "name": "Harbour", "topic": "tides"}
    room = expect(await alice.client.room_create(invite=[bob.id], **options), nio.RoomCreateResponse).room_id

    invite = await bob.until(lambda s: s.rooms.invite.get(room), "the invite")
    states = {type(e).__name__: e for e in invite.invite_state}
    assert states["InviteNameEvent"].name == "Harbour"
    member = next(e for e in invite.invite_state if isinstance(e, nio.InviteMemberEvent) and e.state_key == bob.id)
    assert (member.sender, member.membership) == (alice.id, "invite")

    refused = expect(await eve.client.join(room), nio.JoinError)
    assert refused.status_code == "M_FORBIDDEN", refused
    expect(await bob.client.join(room), nio.JoinResponse)
    await bob.until(lambda s: room in s.rooms.join, "the joined room")
    seen = bob.client.rooms[room]
    assert (seen.name, seen.topic) == ("Harbour", "tides")
    await alice.sync()
    assert set(alice.client.rooms[room].users) == {alice.id, bob.id}


async def public_room_alias_and_search(server):
    alice, bob = await people(server, "alice", "bob")
    local = fresh_name("lighthouse")
    title = f"Keepers of the {local}"
    options = {"preset": RoomPreset.public_chat, "visibility": RoomVisibility.public, "alias": local, "name": title}
    room = expect(await alice.client.room_create(**options), nio.RoomCreateResponse).room_id
    alias = f"#{local}:{alice.id.split(':', 1)[1]}"

    resolved = expect(await bob.client.room_resolve_alias(alias), nio.RoomResolveAliasResponse)
    assert resolved.room_id == room
    found = expect(await bob.client.list_public_rooms(filter_generic_search_term=title), nio.responses.PublicRoomsResponse)
    assert [(r.room_id, r.canonical_alias, r.num_joined_members) for r in found.public_rooms] == [(room, alias, 1)]
    nothing = await bob.client.list_public_rooms(filter_generic_search_term="no room is called that")
    assert nothing.public_rooms == []

    joined = expect(await bob.client.join(alias), nio.JoinResponse)
    assert joined.room_id == room
    await bob.sync()
    assert bob.client.rooms[room].canonical_alias == alias

    expect(await alice.client.room_put_alias(f"#{local}-2:{alias.split(':', 1)[1]}", room), nio.RoomPutAliasResponse)
    expect(await alice.client.room_delete_alias(f"#{local}-2:{alias.split(':', 1)[1]}"), nio.RoomDeleteAliasResponse)
    gone = await bob.client.room_resolve_alias(f"#{local}-2:{alias.split(':', 1)[1]}")
    assert gone.status_code == "M_NOT_FOUND", gone


async def messages_both_ways_in_order(server):
    alice, bob = await people(server, "alice", "bob")
    room = await room_of(alice, bob)
    await asyncio.gather(alice.sync(), bob.sync())

    async def talk(person):
        return [await person.say(room, f"{person.name} {n}") for n in range(20)]

    sent = await asyncio.gather(talk(alice), talk(bob))
    for person in (alice, bob):
        for event_id in (sent[0][-1], sent[1][-1]):
            await person.until_event(room, event_id)
        ids = [e.event_id for e in person.timelines[room]]
        assert len(ids) == len(set(ids)), "an event came twice"
        for speaker in (alice, bob):
            said = [body for body in person.bodies(room) if body.startswith(speaker.name + " ")]
            assert said == [f"{speaker.name} {n}" for n in range(20)], said
    assert alice.bodies(room) == bob.bodies(room)


async def a_transaction_id_sends_once(server):
    (alice,) = await people(server, "alice")
    room = await room_of(alice)
    first = await alice.say(room, "once", txn_id="t1")
    assert await alice.say(room, "once", txn_id="t1") == first
    assert await alice.restored().say(room, "once", txn_id="t1") == first
    assert await alice.say(room, "once", txn_id="t2") != first
    await alice.sync()
    assert alice.bodies(room) == ["once", "once"]
    echo = next(e for e in alice.timelines[room] if e.event_id == first)
    assert echo.transaction_id == "t1"


async def edit_reaction_and_redaction(server):
    alice, bob = await people(server, "alice", "bob")
    room = await room_of(alice, bob)
    original = await alice.say(room, "helo")
    content = {"msgtype": "m.text", "body": "* hello", "m.new_content": {"msgtype": "m.text", "body": "hello"}}
    content["m.relates_to"] = {"rel_type": "m.replace", "event_id": original}
    edit = expect(await alice.client.room_send(room, "m.room.message", content), nio.RoomSendResponse).event_id
    relates_to = {"rel_type": "m.annotation", "event_id": original, "key": "👍"}
    reaction = await bob.client.room_send(room, "m.reaction", {"m.relates_to": relates_to})
    expect(reaction, nio.RoomSendResponse)

    seen = await alice.until_event(room, reaction.event_id)
    assert isinstance(seen, nio.ReactionEvent) and (seen.reacts_to, seen.key) == (original, "👍")
    event = expect(await bob.client.room_get_event(room, original), nio.RoomGetEventResponse).event
    bundled = event.source["unsigned"]["m.relations"]["m.replace"]
    assert bundled["event_id"] == edit and event.body == "helo"
    related = [e.event_id async for e in bob.client.room_get_event_relations(room, original)]
    assert set(related) == {edit, reaction.event_id}

    expect(await bob.client.room_redact(room, reaction.event_id, "not so sure"), nio.RoomRedactResponse)
    refused = await bob.client.room_redact(room, original)
    assert refused.status_code == "M_FORBIDDEN", refused
    redaction = expect(await alice.client.room_redact(room, original, "typo"), nio.RoomRedactResponse).event_id
    shown = await bob.until_event(room, redaction)
    assert isinstance(shown, nio.RedactionEvent) and (shown.redacts, shown.reason) == (original, "typo")
    event = expect(await bob.client.room_get_event(room, original), nio.RoomGetEventResponse).event
    assert isinstance(event, nio.RedactedEvent) and event.redacter == alice.id and event.source["content"] == {}


async def history_backwards_to_the_start(server):
    alice, bob = await people(server, "alice", "bob")
    room = await room_of(alice, bob)
    bob.filter = {"room": {"timeline": {"limit": 10}}}
    await bob.sync()
    topic = expect(await alice.client.room_put_state(room, "m.room.topic", {"topic": "tides"}), nio.RoomPutStateResponse)
    sent = [await alice.say(room, f"line {n}") for n in range(130)]

    await bob.until_event(room, sent[-1])
    limited = bob.syncs[-1].rooms.join[room].timeline
    assert limited.limited, "130 new events are more than one timeline holds"
    assert newest(bob, room, "m.room.topic").event_id == topic.event_id, "state of the gap"
    newest_first = [e.event_id for e in reversed(limited.events)]
    token = limited.prev_batch
    while token:
        page = expect(await bob.client.room_messages(room, start=token, limit=17), nio.RoomMessagesResponse)
        assert len(page.chunk) <= 17 and page.start == token
        newest_first += [e.event_id for e in page.chunk]
        token = page.end
        last = page.chunk[-1] if page.chunk else last
    assert len(newest_first) == len(set(newest_first)), "pages overlap"
    assert last.source["type"] == "m.room.create", last
    lines = [event_id for event_id in reversed(newest_first) if event_id in set(sent)]
    assert lines == sent, "every line once, in order"

    middle = expect(await bob.client.room_context(room, sent[60], limit=10), nio.RoomContextResponse)
    around = [e.event_id for e in reversed(middle.events_before)] + [sent[60]] + [e.event_id for e in middle.events_after]
    assert around == sent[55:66], around


async def members_and_state(server):
    alice, bob, carol = await people(server, "alice", "bob", "carol")
    room = await room_of(alice, bob, carol)
    joined = expect(await bob.client.joined_members(room), nio.JoinedMembersResponse)
    assert {m.user_id for m in joined.members} == {alice.id, bob.id, carol.id}
    members = await bob.raw("GET", path_of("rooms", room, "members") + "?membership=join")
    assert {e["state_key"] for e in members["chunk"]} == {alice.id, bob.id, carol.id}
    rooms = expect(await bob.client.joined_rooms(), nio.JoinedRoomsResponse)
    assert rooms.rooms == [room]

    put = await alice.client.room_put_state(room, "m.room.topic", {"topic": "winds"})
    expect(put, nio.RoomPutStateResponse)
    refused = await bob.client.room_put_state(room, "m.room.topic", {"topic": "mine"})
    assert refused.status_code == "M_FORBIDDEN", refused
    one = expect(await bob.client.room_get_state_event(room, "m.room.topic"), nio.RoomGetStateEventResponse)
    assert one.content["topic"] == "winds"
    odd = await alice.client.room_put_state(room, "org.example/odd", {"x": 1}, state_key="a/b %c")
    expect(odd, nio.RoomPutStateResponse)
    state = expect(await bob.client.room_get_state(room), nio.RoomGetStateResponse)
    by_key = {(e["type"], e["state_key"]): e for e in state.events}
    assert by_key["org.example/odd", "a/b %c"]["content"] == {"x": 1}
    assert by_key["m.room.create", ""]["sender"] == alice.id
    await bob.until_event(room, odd.event_id)
    assert newest(bob, room, "m.room.topic").topic == "winds"


async def profile_change_is_seen_by_others(server):
    alice, bob = await people(server, "alice", "bob")
    room = await room_of(alice, bob)
    await bob.sync()
    expect(await alice.client.set_displayname("Alice of the Isles"), nio.ProfileSetDisplayNameResponse)
    expect(await alice.client.set_avatar("mxc://test.local/portrait"), nio.ProfileSetAvatarResponse)

    profile = expect(await bob.client.get_profile(alice.id), nio.ProfileGetResponse)
    assert (profile.displayname, profile.avatar_url) == ("Alice of the Isles", "mxc://test.local/portrait")

    def changed(_):
        member = newest(bob, room, "m.room.member", alice.id)
        content = member.source["content"] if member else {}
        return content.get("displayname") == profile.displayname and content.get("avatar_url") == profile.avatar_url

    await bob.until(changed, "the new name and picture in the room")
    assert bob.client.rooms[room].user_name(alice.id) == "Alice of the Isles"


async def typing_receipts_and_read_markers(server):
    alice, bob = await people(server, "alice", "bob")
    room = await room_of(alice, bob)
    await asyncio.gather(alice.sync(), bob.sync())

    def ephemeral(sync, kind):
        info = sync.rooms.join.get(room)
        return [e for e in info.ephemeral if isinstance(e, kind)] if info else []

    expect(await alice.client.room_typing(room, True, timeout=20000), nio.RoomTypingResponse)
    typing = await bob.until(lambda s: ephemeral(s, nio.TypingNoticeEvent), "typing")
    assert typing[-1].users == [alice.id]
    expect(await alice.client.room_typing(room, False), nio.RoomTypingResponse)
    await bob.until(lambda s: [e for e in ephemeral(s, nio.TypingNoticeEvent) if e.users == []], "end of typing")

    first, second = await alice.say(room, "one"), await alice.say(room, "two")
    await bob.until_event(room, second)
    assert bob.client.rooms[room].unread_notifications == 2
    expect(await bob.client.update_receipt_marker(room, first), nio.UpdateReceiptMarkerResponse)
    receipts = await alice.until(lambda s: ephemeral(s, nio.ReceiptEvent), "a receipt")
    assert [(r.event_id, r.user_id) for r in receipts[-1].receipts] == [(first, bob.id)]

    marked = await bob.client.room_read_markers(room, fully_read_event=second, read_event=second)
    expect(marked, nio.RoomReadMarkersResponse)
    receipts = await alice.until(lambda s: ephemeral(s, nio.ReceiptEvent), "the second receipt")
    assert [(r.event_id, r.user_id) for r in receipts[-1].receipts] == [(second, bob.id)]

    def marker(sync):
        info = sync.rooms.join.get(room)
        return [e for e in info.account_data if isinstance(e, nio.FullyReadEvent)] if info else []

    assert (await bob.until(marker, "the read marker"))[-1].event_id == second
    assert bob.client.rooms[room].unread_notifications == 0


async def account_data_and_tags(server):
    (alice,) = await people(server, "alice")
    room = await room_of(alice)
    await alice.sync()
    other_device = await Person(server, alice.name).log_in()
    await other_device.sync()

    data = {"colour": "blue", "nested": {"n": [1, 2, 3]}}
    account = path_of("user", alice.id, "account_data", "org.example.settings")
    await alice.raw("PUT", account, data)
    assert await other_device.raw("GET", account) == data

    def arrived(sync):
        return [e for e in sync.account_data_events if getattr(e, "type", "") == "org.example.settings"]

    assert (await other_device.until(arrived, "account data"))[-1].content == data

    tag = path_of("user", alice.id, "rooms", room, "tags", "m.favourite")
    await alice.raw("PUT", tag, {"order": 0.25})

    def tagged(sync):
        info = sync.rooms.join.get(room)
        return [e for e in info.account_data if isinstance(e, nio.TagEvent)] if info else []

    assert (await other_device.until(tagged, "the tag"))[-1].tags == {"m.favourite": {"order": 0.25}}
    await alice.raw("DELETE", tag)
    assert (await other_device.until(tagged, "the tag's end"))[-1].tags == {}
    tags = await alice.raw("GET", path_of("user", alice.id, "rooms", room, "tags"))
    assert tags == {"tags": {}}


async def presence_reaches_those_who_share_a_room(server):
    alice, bob = await people(server, "alice", "bob")
    await room_of(alice, bob)
    await bob.sync()
    expect(await alice.client.set_presence("unavailable", "mending nets"), nio.PresenceSetResponse)

    def seen(sync):
        return [e for e in sync.presence_events if e.user_id == alice.id and e.presence == "unavailable"]

    assert (await bob.until(seen, "presence"))[-1].status_msg == "mending nets"
    asked = expect(await bob.client.get_presence(alice.id), nio.PresenceGetResponse)
    assert (asked.presence, asked.status_msg) == ("unavailable", "mending nets")


def picture(width: int, height: int) -> bytes:
    """A PNG with a colour gradient, made here so that no picture need be shipped."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(
        b"\0" + b"".join(bytes((x * 255 // width, y * 255 // height, 90)) for x in range(width)) for y in range(height)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def picture_size(data: bytes) -> tuple:
    """Width and height of a PNG or JPEG: a server may choose for thumbnails."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return struct.unpack(">II", data[16:24])
    assert data[:2] == b"\xff\xd8", data[:16]
    at = 2
    while data[at + 1] not in (0xC0, 0xC1, 0xC2):  # on to the start of the frame
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    height, width = struct.unpack(">HH", data[at + 5 : at + 9])
    return width, height


async def media_round_trip_and_thumbnail(server):
    alice, bob = await people(server, "alice", "bob")
    data = picture(640, 480)
    answer, _ = await alice.client.upload(io.BytesIO(data), "image/png", filename="boat é.png", filesize=len(data))
    uri = expect(answer, nio.UploadResponse).content_uri
    host, media_id = uri.removeprefix("mxc://").split("/")

    room = await room_of(alice, bob)
    content = {"msgtype": "m.image", "body": "boat.png", "url": uri}
    sent = expect(await alice.client.room_send(room, "m.room.message", content), nio.RoomSendResponse)
    shown = await bob.until_event(room, sent.event_id)
    assert isinstance(shown, nio.RoomMessageImage) and shown.url == uri

    fetched = expect(await bob.client.download(shown.url), nio.MemoryDownloadResponse)
    assert fetched.body == data and fetched.content_type == "image/png"
    assert fetched.filename == "boat é.png", fetched.filename
    small = expect(await bob.client.thumbnail(host, media_id, 64, 64), nio.ThumbnailResponse)
    width, height = picture_size(small.body)
    assert 64 <= width <= 320 and abs(width / height - 640 / 480) < 0.05, (width, height)

    large = bytes(range(256)) * 4096 * 3  # 3 MiB
    answer, _ = await alice.client.upload(io.BytesIO(large), "application/x-thing", filesize=len(large))
    fetched = await bob.client.download(expect(answer, nio.UploadResponse).content_uri)
    assert expect(fetched, nio.MemoryDownloadResponse).body == large
    missing = await bob.client.download(f"mxc://{host}/nothinghere")
    assert expect(missing, nio.DownloadError).status_code == "M_NOT_FOUND", missing


async def kick_ban_leave_and_forget(server):
    alice, bob, carol = await people(server, "alice", "bob", "carol")
    room = await room_of(alice, bob, carol)
    await asyncio.gather(bob.sync(), carol.sync())

    expect(await alice.client.room_kick(room, bob.id, "mind the manners"), nio.RoomKickResponse)
    left = await bob.until(lambda s: s.rooms.leave.get(room), "the kick")
    assert left.timeline.events[-1].content["membership"] == "leave"
    assert left.timeline.events[-1].content["reason"] == "mind the manners"
    refused = await bob.client.room_send(room, "m.room.message", {"msgtype": "m.text", "body": "hey"})
    assert refused.status_code == "M_FORBIDDEN", refused

    expect(await alice.client.room_ban(room, bob.id), nio.RoomBanResponse)
    invited = await alice.client.room_invite(room, bob.id)
    assert invited.status_code in ("M_FORBIDDEN", "M_BAD_STATE"), invited
    expect(await alice.client.room_unban(room, bob.id), nio.RoomUnbanResponse)
    expect(await alice.client.room_invite(room, bob.id), nio.RoomInviteResponse)
    expect(await bob.client.join(room), nio.JoinResponse)

    expect(await carol.client.room_leave(room), nio.RoomLeaveResponse)
    after = await alice.say(room, "is carol still here?")
    await carol.until(lambda s: s.rooms.leave.get(room), "the own leave")
    assert after not in [e.event_id for e in carol.timelines[room]]
    frozen = await carol.client.room_messages(room, start=None, limit=5)
    assert after not in [e.event_id for e in expect(frozen, nio.RoomMessagesResponse).chunk]
    expect(await carol.client.room_forget(room), nio.RoomForgetResponse)
    gone = await carol.client.room_messages(room, start=None, limit=5)
    assert gone.status_code == "M_FORBIDDEN", gone
    await bob.until_event(room, after)


async def a_long_poll_returns_as_soon_as_something_happens(server):
    alice, bob = await people(server, "alice", "bob")
    room = await room_of(alice, bob)
    await bob.sync()
    await bob.sync()  # now there is nothing left to say
    poll = asyncio.create_task(bob.sync(timeout_ms=30000))
    await asyncio.sleep(0.5)
    assert not poll.done(), f"an empty poll ended at once: {poll.result()}"
    sent = await alice.say(room, "wake up")
    answer = await asyncio.wait_for(poll, 5)
    assert [e.event_id for e in answer.rooms.join[room].timeline.events] == [sent]


ALL = [
    register_login_and_token_restore,
    private_room_invite_and_join,
    public_room_alias_and_search,
    messages_both_ways_in_order,
    a_transaction_id_sends_once,
    edit_reaction_and_redaction,
    history_backwards_to_the_start,
    members_and_state,
    profile_change_is_seen_by_others,
    typing_receipts_and_read_markers,
    account_data_and_tags,
    presence_reaches_those_who_share_a_room,
    media_round_trip_and_thumbnail,
    kick_ban_leave_and_forget,
    a_long_poll_returns_as_soon_as_something_happens,
]
