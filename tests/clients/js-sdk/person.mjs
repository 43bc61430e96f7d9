// A person at a matrix-js-sdk client: registers, logs in, keeps syncing, and waits for what should show up.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

import { ClientEvent, createClient } from "matrix-js-sdk";
import { logger } from "matrix-js-sdk/lib/logger.js";

export const PASSWORD = "correct horse battery staple";
const WAIT_MS = 60_000; // much is computed, and the machine may be busy
const quiet = { trace() {}, debug() {}, info() {}, warn() {}, error() {}, getChild: () => quiet };

// What has no client of its own talks to the library-wide logger.
logger.setLevel("silent");
logger.getChild = () => quiet;

let numbers = 0;

// A name no other scenario uses.
export function freshName(stem) {
    numbers += 1;
    return `${stem}-${numbers}`;
}

// Waits until `find` returns (or resolves to) something truthy, and returns that.
export async function until(find, what, waitMs = WAIT_MS) {
    const end = performance.now() + waitMs;
    while (performance.now() < end) {
        const found = await find();
        if (found) return found;
        await sleep(10);
    }
    assert.fail(`waited ${waitMs} ms in vain for ${what}`);
}

// Asserts that a request is refused with that code.
export async function refused(request, errcode, what) {
    const error = await request.then(
        () => assert.fail(`not refused: ${what ?? errcode}`),
        (error) => error,
    );
    assert.equal(error.errcode, errcode, `${error}`);
    return error;
}

export class Person {
    // `options` go to the SDK's client as they are.
    constructor(server, name, session, options = {}) {
        this.server = server;
        this.name = name;
        this.session = session;
        this.id = session.user_id;
        this.said = new Set(); // ids of what this device has sent
        this.polls = new Map(); // token (none: "") -> what the sync from there brought
        this.client = createClient({
            fetchFn: (address, options) => this.#listeningFetch(address, options),
            baseUrl: server.url,
            userId: session.user_id,
            deviceId: session.device_id,
            accessToken: session.access_token,
            logger: quiet,
            ...options,
        });
    }

    // A new account, not yet syncing.
    static async registered(server, stem) {
        const name = freshName(stem);
        const client = createClient({ baseUrl: server.url, logger: quiet });
        const auth = { type: "m.login.dummy" };
        return new this(server, name, await client.registerRequest({ username: name, password: PASSWORD, auth }));
    }

    // A new device of the same account.
    async anotherDevice(password = PASSWORD) {
        const client = createClient({ baseUrl: this.server.url, logger: quiet });
        const identifier = { type: "m.id.user", user: this.name };
        const session = await client.loginRequest({ type: "m.login.password", identifier, password });
        return new this.constructor(this.server, this.name, session);
    }

    // The same device from its stored token, in a client that knows nothing else.
    restored() {
        return new this.constructor(this.server, this.name, this.session);
    }

    // Starts syncing and waits for the first response.
    async syncing(options = {}) {
        const prepared = new Promise((done) => {
            this.client.on(ClientEvent.Sync, (state) => state === "PREPARED" && done());
        });
        await this.client.startClient({ initialSyncLimit: 20, lazyLoadMembers: true, pollTimeout: 10_000, ...options });
        await prepared;
        return this;
    }

    room(roomId) {
        return this.client.getRoom(roomId);
    }

    // The room's live timeline without what is still being sent.
    events(roomId) {
        const events = this.room(roomId)?.getLiveTimeline().getEvents() ?? [];
        return events.filter((event) => event.status === null);
    }

    bodies(roomId) {
        return this.events(roomId).filter((e) => e.getType() === "m.room.message").map((e) => e.getContent().body);
    }

    untilEvent(roomId, eventId) {
        return until(() => this.events(roomId).find((e) => e.getId() === eventId), `${eventId} at ${this.name}`);
    }

    async say(roomId, body, txnId) {
        const sent = await this.client.sendEvent(roomId, "m.room.message", { msgtype: "m.text", body }, txnId);
        this.said.add(sent.event_id);
        return sent.event_id;
    }

    // The SDK forgives much: what the server really sent is kept, to be judged at the end.
    async #listeningFetch(address, options) {
        const url = new URL(address);
        const isSync = url.pathname.endsWith("/v3/sync");
        if (isSync) this.pollBegan = performance.now();
        const answer = await fetch(address, options);
        if (isSync && answer.ok) {
            // A sync that was asked for again, because its answer did not arrive, counts once.
            this.polls.set(url.searchParams.get("since") ?? "", await answer.clone().json());
        }
        return answer;
    }

    // Waits until a poll of this device has been open for a while: the server has nothing to say.
    untilPolling(ms = 500) {
        return until(() => performance.now() - this.pollBegan > ms, `a quiet poll of ${this.name}`);
    }

    // No event twice (unless one has left and come back), and each own one with the transaction that tells its echo.
    // No encrypted message to this device twice: each is worded differently.
    judge() {
        const seen = new Map(); // room -> ids
        const messages = new Set();
        for (const { rooms: { join = {}, leave = {} } = {}, to_device: toDevice } of this.polls.values()) {
            for (const message of toDevice?.events ?? []) {
                if (message.type !== "m.room.encrypted") continue;
                const text = JSON.stringify(message);
                assert.ok(!messages.has(text), `${this.name} was sent twice: ${text}`);
                messages.add(text);
            }
            for (const [roomId, room] of Object.entries(join)) {
                const ids = seen.get(roomId) ?? seen.set(roomId, new Set()).get(roomId);
                for (const event of room.timeline?.events ?? []) {
                    const { event_id: id, unsigned } = event;
                    assert.ok(!ids.has(id), `${this.name} was sent twice: ${JSON.stringify(event)}`);
                    ids.add(id);
                    assert.ok(!this.said.has(id) || unsigned?.transaction_id, `${id} came without its transaction`);
                }
            }
            Object.keys(leave).forEach((roomId) => seen.delete(roomId));
        }
    }

    stop() {
        this.client.stopClient();
        this.judge();
    }
}

// New accounts, all of them syncing; `test` stops them at its end.
export function people(test, server, ...stems) {
    return peopleOf(Person, test, server, ...stems);
}

export async function peopleOf(Kind, test, server, ...stems) {
    const everybody = await Promise.all(stems.map((stem) => Kind.registered(server, stem)));
    test.after(() => everybody.forEach((person) => person.stop()));
    await Promise.all(everybody.map((person) => person.syncing()));
    return everybody;
}

// A private room that everybody named has joined and sees.
export function roomOf(owner, ...members) {
    return roomWith({}, owner, ...members);
}

export async function roomWith(options, owner, ...members) {
    const invite = members.map((member) => member.id);
    const { room_id: roomId } = await owner.client.createRoom({ preset: "private_chat", invite, ...options });
    for (const member of members) await member.client.joinRoom(roomId);
    for (const person of [owner, ...members]) {
        await until(() => person.room(roomId)?.getMyMembership() === "join", `${person.name} in the room`);
    }
    return roomId;
}
