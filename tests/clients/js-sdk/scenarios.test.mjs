// What people do with a client, one scenario each. They share a server, so each makes its own accounts and rooms.

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { deflateSync, crc32 } from "node:zlib";

import { RoomMemberEvent } from "matrix-js-sdk";

import { freshName, people, refused, roomOf, until } from "./person.mjs";
import { Server } from "./server.mjs";

let server;
before(async () => (server = await Server.started()));
after(() => server.discard());

describe("js-sdk", { concurrency: 6, timeout: 180_000 }, () => {
    it("registers, logs in and goes on with a stored token", async (t) => {
        const [alice] = await people(t, server, "alice");
        const second = await alice.anotherDevice();
        assert.notEqual(second.session.device_id, alice.session.device_id);
        const { devices } = await alice.client.getDevices();
        const ids = devices.map((device) => device.device_id);
        assert.deepEqual(new Set(ids), new Set([alice.session.device_id, second.session.device_id]));

        const who = await alice.restored().client.whoami();
        assert.equal(who.user_id, alice.id);
        assert.equal(who.device_id, alice.session.device_id);
        await refused(alice.anotherDevice("not the password"), "M_FORBIDDEN");

        await second.client.logout();
        await refused(second.client.whoami(), "M_UNKNOWN_TOKEN");
        assert.equal((await alice.client.whoami()).user_id, alice.id);
    });

    it("invites into a private room", async (t) => {
        const [alice, bob, eve] = await people(t, server, "alice", "bob", "eve");
        const options = { preset: "private_chat", name: "Harbour", topic: "tides", invite: [bob.id] };
        const { room_id: roomId } = await alice.client.createRoom(options);
        await until(() => bob.room(roomId)?.getMyMembership() === "invite", "the invite");
        assert.equal(bob.room(roomId).name, "Harbour");
        await refused(eve.client.joinRoom(roomId), "M_FORBIDDEN");

        await bob.client.joinRoom(roomId);
        await until(() => bob.room(roomId).getMyMembership() === "join", "the join");
        const topic = () => bob.room(roomId).currentState.getStateEvents("m.room.topic", "");
        assert.equal((await until(topic, "the topic")).getContent().topic, "tides");
        await until(() => alice.room(roomId).getJoinedMemberCount() === 2, "two members");
    });

    it("finds a public room by search and joins it by alias", async (t) => {
        const [alice, bob] = await people(t, server, "alice", "bob");
        const local = freshName("lighthouse");
        const name = `Keepers of the ${local}`;
        const options = { preset: "public_chat", visibility: "public", room_alias_name: local, name };
        const { room_id: roomId } = await alice.client.createRoom(options);
        const alias = `#${local}:${alice.id.split(":")[1]}`;

        assert.equal((await bob.client.getRoomIdForAlias(alias)).room_id, roomId);
        const found = await bob.client.publicRooms({ filter: { generic_search_term: name } });
        assert.deepEqual(found.chunk.map((r) => [r.room_id, r.canonical_alias]), [[roomId, alias]]);
        await bob.client.joinRoom(alias);
        await until(() => bob.room(roomId)?.getCanonicalAlias() === alias, "the alias");
        await alice.client.deleteAlias(alias);
        await refused(bob.client.getRoomIdForAlias(alias), "M_NOT_FOUND");
    });

    it("talks both ways, in order", async (t) => {
        const [alice, bob] = await people(t, server, "alice", "bob");
        const roomId = await roomOf(alice, bob);
        const talk = async (person) => {
            const ids = [];
            for (let n = 0; n < 20; n += 1) ids.push(await person.say(roomId, `${person.name} ${n}`));
            return ids;
        };
        const [byAlice, byBob] = await Promise.all([talk(alice), talk(bob)]);
        for (const person of [alice, bob]) {
            await person.untilEvent(roomId, byAlice.at(-1));
            await person.untilEvent(roomId, byBob.at(-1));
            const ids = person.events(roomId).map((e) => e.getId());
            assert.equal(new Set(ids).size, ids.length, "an event came twice");
            for (const [speaker, sent] of [[alice, byAlice], [bob, byBob]]) {
                assert.deepEqual(ids.filter((id) => sent.includes(id)), sent, `${speaker.name}'s order`);
            }
        }
        // Local echoes are ordered by the SDK itself; a client that only listens shows the server's order.
        const listener = await bob.anotherDevice();
        t.after(() => listener.stop());
        await listener.syncing({ initialSyncLimit: 60 });
        assert.equal(listener.bodies(roomId).filter((body) => / \d+$/.test(body)).length, 40);
    });

    it("sends once per transaction id", async (t) => {
        const [alice] = await people(t, server, "alice");
        const roomId = await roomOf(alice);
        const first = await alice.say(roomId, "once", "t1");
        assert.equal(await alice.restored().say(roomId, "once", "t1"), first);
        assert.notEqual(await alice.say(roomId, "once", "t2"), first);
        await until(() => alice.bodies(roomId).length === 2, "two messages");
    });

    it("edits, reacts and redacts", async (t) => {
        const [alice, bob] = await people(t, server, "alice", "bob");
        const roomId = await roomOf(alice, bob);
        const original = await alice.say(roomId, "helo");
        const content = { "msgtype": "m.text", "body": "* hello", "m.new_content": { msgtype: "m.text", body: "hello" } };
        content["m.relates_to"] = { rel_type: "m.replace", event_id: original };
        await alice.client.sendEvent(roomId, "m.room.message", content);
        const shown = await bob.untilEvent(roomId, original);
        await until(() => shown.getContent().body === "hello", "the edit");

        const reaction = { "m.relates_to": { rel_type: "m.annotation", event_id: original, key: "👍" } };
        const { event_id: reactionId } = await bob.client.sendEvent(roomId, "m.reaction", reaction);
        await alice.untilEvent(roomId, reactionId);
        const related = await alice.client.relations(roomId, original, "m.annotation", "m.reaction");
        assert.deepEqual(related.events.map((e) => [e.getId(), e.getRelation().key]), [[reactionId, "👍"]]);

        await refused(bob.client.redactEvent(roomId, original), "M_FORBIDDEN");
        await alice.client.redactEvent(roomId, original, undefined, { reason: "typo" });
        await until(() => shown.isRedacted(), "the redaction");
        const fetched = await bob.client.fetchRoomEvent(roomId, original);
        assert.deepEqual(fetched.content, {});
        assert.equal(fetched.unsigned.redacted_because.content.reason, "typo");
    });

    it("reads history backwards to the start", async (t) => {
        const [alice, bob] = await people(t, server, "alice", "bob");
        const roomId = await roomOf(alice, bob);
        const sent = [];
        for (let n = 0; n < 130; n += 1) sent.push(await alice.say(roomId, `line ${n}`));
        const late = await bob.anotherDevice();
        t.after(() => late.stop());
        await late.syncing({ initialSyncLimit: 10 });
        const room = late.room(roomId);
        assert.equal(room.getLiveTimeline().getEvents().length, 10);
        assert.equal(room.currentState.getStateEvents("m.room.create", "").getSender(), alice.id);
        assert.equal(room.getMember(alice.id).membership, "join");
        let pages = 0;
        while (room.oldState.paginationToken !== null) {
            await late.client.scrollback(room, 25);
            pages += 1;
            assert.ok(pages < 20, "history does not end");
        }
        const events = room.getLiveTimeline().getEvents();
        assert.equal(events[0].getType(), "m.room.create");
        const lines = events.filter((e) => e.getType() === "m.room.message").map((e) => e.getId());
        assert.deepEqual(lines, sent);
    });

    it("sees members and state", async (t) => {
        const [alice, bob, carol] = await people(t, server, "alice", "bob", "carol");
        const roomId = await roomOf(alice, bob, carol);
        await bob.room(roomId).loadMembersIfNeeded();
        const names = bob.room(roomId).getJoinedMembers().map((member) => member.userId);
        assert.deepEqual(new Set(names), new Set([alice.id, bob.id, carol.id]));
        assert.deepEqual((await carol.client.getJoinedRooms()).joined_rooms, [roomId]);

        await alice.client.sendStateEvent(roomId, "org.example/odd", { x: 1 }, "a/b %c");
        const odd = () => bob.room(roomId).currentState.getStateEvents("org.example/odd", "a/b %c");
        assert.deepEqual((await until(odd, "the state event")).getContent(), { x: 1 });
        assert.deepEqual(await bob.client.getStateEvent(roomId, "org.example/odd", "a/b %c"), { x: 1 });
        await refused(bob.client.sendStateEvent(roomId, "m.room.topic", { topic: "mine" }, ""), "M_FORBIDDEN");
        const state = await bob.client.roomState(roomId);
        assert.equal(state.find((event) => event.type === "m.room.create").sender, alice.id);
    });

    it("shows a changed profile to others", async (t) => {
        const [alice, bob] = await people(t, server, "alice", "bob");
        const roomId = await roomOf(alice, bob);
        await bob.room(roomId).loadMembersIfNeeded();
        await alice.client.setDisplayName("Alice of the Isles");
        await alice.client.setAvatarUrl("mxc://test.local/portrait");
        const member = () => bob.room(roomId).getMember(alice.id);
        await until(() => member()?.name === "Alice of the Isles", "the name");
        await until(() => member()?.getMxcAvatarUrl() === "mxc://test.local/portrait", "the picture");
        assert.equal((await bob.client.getProfileInfo(alice.id)).displayname, "Alice of the Isles");
    });

    it("shows typing, receipts and read markers", async (t) => {
        const [alice, bob] = await people(t, server, "alice", "bob");
        const roomId = await roomOf(alice, bob);
        await bob.room(roomId).loadMembersIfNeeded();
        const typing = [];
        bob.client.on(RoomMemberEvent.Typing, (_, member) => typing.push([member.userId, member.typing]));
        await alice.client.sendTyping(roomId, true, 20_000);
        await until(() => typing.length === 1, "typing");
        await alice.client.sendTyping(roomId, false, 0);
        await until(() => typing.length === 2, "the end of typing");
        assert.deepEqual(typing, [[alice.id, true], [alice.id, false]]);

        await alice.say(roomId, "one");
        const last = await bob.untilEvent(roomId, await alice.say(roomId, "two"));
        await until(() => bob.room(roomId).getUnreadNotificationCount() === 2, "two unread");
        await bob.client.sendReadReceipt(last);
        const read = () => alice.room(roomId).getEventReadUpTo(bob.id) === last.getId();
        await until(read, "the receipt");
        await until(() => bob.room(roomId).getUnreadNotificationCount() === 0, "nothing unread");
        await bob.client.setRoomReadMarkers(roomId, last.getId(), last);
        const marker = () => bob.room(roomId).getAccountData("m.fully_read");
        assert.equal((await until(marker, "the marker")).getContent().event_id, last.getId());
    });

    it("keeps account data and tags", async (t) => {
        const [alice] = await people(t, server, "alice");
        const roomId = await roomOf(alice);
        const other = await alice.anotherDevice();
        t.after(() => other.stop());
        await other.syncing();
        const data = { colour: "blue", nested: { n: [1, 2, 3] } };
        await alice.client.setAccountData("org.example.settings", data);
        const arrived = () => other.client.getAccountData("org.example.settings");
        assert.deepEqual((await until(arrived, "account data")).getContent(), data);
        assert.deepEqual(await other.client.getAccountDataFromServer("org.example.settings"), data);

        await alice.client.setRoomTag(roomId, "m.favourite", { order: 0.25 });
        await until(() => other.room(roomId).tags["m.favourite"]?.order === 0.25, "the tag");
        await alice.client.deleteRoomTag(roomId, "m.favourite");
        await until(() => !other.room(roomId).tags["m.favourite"], "the tag's end");
    });

    it("shows presence to those who share a room", async (t) => {
        const [alice, bob] = await people(t, server, "alice", "bob");
        await roomOf(alice, bob);
        await alice.client.setSyncPresence("unavailable");
        await alice.client.setPresence({ presence: "unavailable", status_msg: "mending nets" });
        // The SDK has no event for a new status beside the same presence: its user is asked.
        const there = () => {
            const user = bob.client.getUser(alice.id);
            return user?.presence === "unavailable" && user.presenceStatusMsg === "mending nets";
        };
        await until(there, "presence");
        assert.equal((await bob.client.getPresence(alice.id)).status_msg, "mending nets");
    });

    it("brings media back byte for byte, and smaller on request", async (t) => {
        const [alice, bob] = await people(t, server, "alice", "bob");
        const data = picture(640, 480);
        const { content_uri: uri } = await alice.client.uploadContent(new Blob([data]), { type: "image/png", name: "boat é.png" });
        const roomId = await roomOf(alice, bob);
        const { event_id: eventId } = await alice.client.sendEvent(roomId, "m.room.message", { msgtype: "m.image", body: "boat", url: uri });
        const url = (await bob.untilEvent(roomId, eventId)).getContent().url;

        const get = (...size) => {
            const address = bob.client.mxcUrlToHttp(url, ...size);
            return fetch(address, { headers: { Authorization: `Bearer ${bob.session.access_token}` } });
        };
        const whole = await get(undefined, undefined, undefined, false, true, true);
        assert.equal(whole.headers.get("content-type"), "image/png");
        assert.deepEqual(Buffer.from(await whole.arrayBuffer()), data);
        const small = await get(64, 64, "scale", false, true, true);
        assert.match(small.headers.get("content-type"), /^image\/(png|jpeg|webp)$/);
        const { byteLength } = await small.arrayBuffer();
        assert.ok(byteLength > 100 && byteLength < data.length * 4, `${byteLength} bytes`);
        const anonymous = await fetch(bob.client.mxcUrlToHttp(url, undefined, undefined, undefined, false, true, true));
        assert.equal(anonymous.status, 401);
    });

    it("kicks, bans, leaves and forgets", async (t) => {
        const [alice, bob, carol] = await people(t, server, "alice", "bob", "carol");
        const roomId = await roomOf(alice, bob, carol);
        await alice.client.kick(roomId, bob.id, "mind the manners");
        await until(() => bob.room(roomId).getMyMembership() === "leave", "the kick");
        await refused(bob.say(roomId, "hey"), "M_FORBIDDEN");
        await alice.client.ban(roomId, bob.id);
        await assert.rejects(alice.client.invite(roomId, bob.id));
        await alice.client.unban(roomId, bob.id);
        await alice.client.invite(roomId, bob.id);
        await bob.client.joinRoom(roomId);

        await carol.client.leave(roomId);
        const unseen = await alice.say(roomId, "is carol still here?");
        await until(() => carol.room(roomId).getMyMembership() === "leave", "the own leave");
        await bob.untilEvent(roomId, unseen);
        assert.ok(!carol.events(roomId).some((event) => event.getId() === unseen));
        await refused(carol.client.fetchRoomEvent(roomId, unseen), "M_NOT_FOUND");
        await carol.client.forget(roomId);
        assert.equal(carol.room(roomId), null);
        await refused(carol.client.roomState(roomId), "M_FORBIDDEN");
    });

    it("wakes a long poll at once", async (t) => {
        const [alice, bob] = await people(t, server, "alice", "bob");
        const roomId = await roomOf(alice, bob);
        await Promise.all([alice.untilPolling(), bob.untilPolling()]);
        const began = performance.now();
        await bob.untilEvent(roomId, await alice.say(roomId, "wake up"));
        assert.ok(performance.now() - began < 3000, "the poll was not woken, it ran out");
    });
});

// A PNG with a colour gradient, made here so that no picture need be shipped.
function picture(width, height) {
    const chunk = (kind, data) => {
        const body = Buffer.concat([Buffer.from(kind), data]);
        const frame = Buffer.alloc(8);
        frame.writeUInt32BE(data.length, 0);
        frame.writeUInt32BE(crc32(body), 4);
        return Buffer.concat([frame.subarray(0, 4), body, frame.subarray(4)]);
    };
    const header = Buffer.alloc(13);
    header.writeUInt32BE(width, 0);
    header.writeUInt32BE(height, 4);
    header.set([8, 2, 0, 0, 0], 8);
    const rows = Buffer.alloc((width * 3 + 1) * height);
    for (let y = 0; y < height; y += 1) {
        for (let x = 0; x < width; x += 1) {
            rows.set([(x * 255) / width, (y * 255) / height, 90], y * (width * 3 + 1) + 1 + x * 3);
        }
    }
    const magic = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
    return Buffer.concat([magic, chunk("IHDR", header), chunk("IDAT", deflateSync(rows)), chunk("IEND", Buffer.alloc(0))]);
}
