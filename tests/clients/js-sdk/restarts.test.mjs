// The server goes away in the middle of a long poll. Each of these scenarios has a server of its own.

import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { people, roomOf, until } from "./person.mjs";
import { Server } from "./server.mjs";

describe("js-sdk restarts", { concurrency: 2, timeout: 180_000 }, () => {
    for (const how of ["SIGKILL", "SIGTERM"]) {
        it(`goes on after ${how}`, async (t) => {
            const server = await Server.started();
            t.after(() => server.discard());
            const [alice, bob] = await people(t, server, "alice", "bob");
            const roomId = await roomOf(alice, bob);
            const sent = [];
            for (let n = 0; n < 5; n += 1) sent.push(await alice.say(roomId, `before ${n}`));
            await bob.untilEvent(roomId, sent.at(-1));
            await Promise.all([alice.untilPolling(), bob.untilPolling()]);

            const began = performance.now();
            const code = await server.stop(how);
            const stoppedMs = performance.now() - began;
            if (how === "SIGTERM") {
                assert.equal(code, 0);
                assert.ok(stoppedMs < 2000, `SIGTERM took ${stoppedMs} ms with polls open`);
            }
            await until(() => bob.client.getSyncState() !== "SYNCING", "the client to notice");
            const startedMs = await server.start();
            t.diagnostic(`stopped in ${stoppedMs.toFixed(0)} ms, ready again in ${startedMs.toFixed(0)} ms`);

            // The SDK syncs on by itself; its first retry may take some seconds.
            for (let n = 0; n < 5; n += 1) sent.push(await alice.say(roomId, `after ${n}`));
            await bob.untilEvent(roomId, sent.at(-1));
            const ids = bob.events(roomId).map((event) => event.getId());
            assert.deepEqual(ids.filter((id) => sent.includes(id)), sent, "all of it, once, in order");
            const fresh = await bob.anotherDevice();
            t.after(() => fresh.stop());
            await fresh.syncing();
            assert.deepEqual(fresh.events(roomId).map((e) => e.getId()).filter((id) => sent.includes(id)), sent);
        });
    }
});
