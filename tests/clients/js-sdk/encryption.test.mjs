// End-to-end encryption as clients do it. The server cannot read along; what it must do is to carry keys and signatures
// to the right devices, once, and to keep what it was given.

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { decodeRecoveryKey, OnlySignedDevicesIsolationMode } from "matrix-js-sdk/lib/crypto-api/index.js";

import { compareEmoji, confidants, secretRoomOf } from "./confidant.mjs";
import { refused, until } from "./person.mjs";
import { Server } from "./server.mjs";

let server;
before(async () => (server = await Server.started()));
after(() => server.discard());

describe("js-sdk encryption", { concurrency: 6, timeout: 300_000 }, () => {
    it("is read by the members of a room, and not by the server", async (t) => {
        const [alice, bob] = await confidants(t, server, "alice", "bob");
        const roomId = await secretRoomOf(alice, bob);
        const question = await alice.say(roomId, "where is the lamp oil?");
        await bob.untilReads(roomId, question, "where is the lamp oil?");
        const answer = await bob.say(roomId, "under the stairs");
        await alice.untilReads(roomId, answer, "under the stairs");

        for (const id of [question, answer]) {
            const kept = await alice.client.fetchRoomEvent(roomId, id);
            assert.equal(kept.type, "m.room.encrypted");
            assert.doesNotMatch(JSON.stringify(kept), /lamp|stairs/);
        }
    });

    it("reaches a device that comes later, from then on", async (t) => {
        const [alice, bob] = await confidants(t, server, "alice", "bob");
        const roomId = await secretRoomOf(alice, bob);
        const early = await alice.say(roomId, "too early");
        await bob.untilReads(roomId, early, "too early");

        const second = await bob.anotherDevice();
        t.after(() => second.stop());
        await second.syncing();
        await alice.untilKnows(second);
        const late = await alice.say(roomId, "in time");
        await Promise.all([bob, second].map((device) => device.untilReads(roomId, late, "in time")));
        const unread = second.room(roomId).findEventById(early);
        assert.ok(unread.isDecryptionFailure(), "a new device has no keys of what was said before");

        await second.client.logout();
        const gone = async () => (await alice.crypto.getUserDeviceInfo([bob.id])).get(bob.id).size === 1;
        await until(gone, "the end of the second device");
        const last = await alice.say(roomId, "among ourselves");
        await bob.untilReads(roomId, last, "among ourselves");
    });

    it("takes the first cross-signing keys as they come, others with the password", async (t) => {
        const [alice, bob] = await confidants(t, server, "alice", "bob");
        const roomId = await secretRoomOf(alice, bob);
        bob.crypto.setDeviceIsolationMode(new OnlySignedDevicesIsolationMode());
        await alice.crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: alice.auth() });
        assert.equal(alice.wasAsked, false);
        assert.ok(await alice.crypto.isCrossSigningReady());
        await bob.untilSigned(alice, alice.deviceId);
        await bob.untilReads(roomId, await alice.say(roomId, "signed"), "signed");

        const anew = (password) =>
            alice.crypto.bootstrapCrossSigning({
                setupNewCrossSigning: true,
                authUploadDeviceSigningKeys: alice.auth(password),
            });
        const published = async () => (await bob.crypto.getUserCrossSigningKeys(alice.id)).master_key.keys;
        const before = await published();
        await refused(anew("not the password"), "M_FORBIDDEN");
        await anew();
        assert.equal(alice.wasAsked, true);
        const changed = async () => (await bob.crypto.getUserVerificationStatus(alice.id)).needsUserApproval;
        await until(changed, "bob to be warned of a changed identity");
        assert.notDeepEqual(await published(), before);
    });

    it("comes back on a new device with the recovery key", async (t) => {
        const [alice, bob] = await confidants(t, server, "alice", "bob");
        const roomId = await secretRoomOf(alice, bob);
        const key = await alice.setsUpRecovery();
        const said = [await alice.say(roomId, "mine"), await bob.say(roomId, "yours")];
        await alice.untilReads(roomId, said[1], "yours");
        await alice.untilBackedUp(2);

        const fresh = await alice.anotherDevice();
        t.after(() => fresh.stop());
        await fresh.syncing();
        await fresh.untilKnowsItself();
        fresh.recoveryKey = decodeRecoveryKey(key.encodedPrivateKey);
        await fresh.crypto.bootstrapCrossSigning({});
        await fresh.crypto.loadSessionBackupPrivateKeyFromSecretStorage();
        const { imported, total } = await fresh.crypto.restoreKeyBackup();
        assert.deepEqual({ imported, total }, { imported: 2, total: 2 });
        await fresh.untilReads(roomId, said[0], "mine");
        await fresh.untilReads(roomId, said[1], "yours");
        assert.ok(await fresh.crypto.isSecretStorageReady());
        await Promise.all([alice, bob].map((person) => person.untilSigned(alice, fresh.deviceId)));
    });

    it("is handed from device to device after a look at seven emoji", async (t) => {
        const [alice, bob] = await confidants(t, server, "alice", "bob");
        const roomId = await secretRoomOf(alice, bob);
        await alice.setsUpRecovery();
        const old = await bob.say(roomId, "long ago");
        await alice.untilReads(roomId, old, "long ago");
        await alice.untilBackedUp(1);

        const second = await alice.anotherDevice();
        t.after(() => second.stop());
        await second.syncing();
        await second.untilKnowsItself();
        await compareEmoji(await second.crypto.requestOwnUserVerification(), alice);

        await Promise.all([alice, bob, second].map((person) => person.untilSigned(alice, second.deviceId)));
        const keys = async () => {
            const { privateKeysCachedLocally: here } = await second.crypto.getCrossSigningStatus();
            return here.masterKey && here.selfSigningKey && here.userSigningKey;
        };
        await until(keys, "the private cross-signing keys from the first device");
        // The backup's key comes along, and with it what was said before.
        await until(() => second.crypto.getActiveSessionBackupVersion(), "the backup's key from the first device");
        await second.untilReads(roomId, old, "long ago");
    });

    it("knows another person after a look at seven emoji", async (t) => {
        const [alice, bob] = await confidants(t, server, "alice", "bob");
        const roomId = await secretRoomOf(alice, bob);
        for (const person of [alice, bob]) {
            await person.crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: person.auth() });
        }
        await Promise.all([alice.untilSigned(bob, bob.deviceId), bob.untilSigned(alice, alice.deviceId)]);
        await compareEmoji(await alice.crypto.requestVerificationDM(bob.id, roomId), bob);
        for (const [one, other] of [[alice, bob], [bob, alice]]) {
            const verified = async () => (await one.crypto.getUserVerificationStatus(other.id)).isCrossSigningVerified();
            await until(verified, `${one.name} to trust ${other.name}`);
        }
    });

    it("survives the server and the client", async (t) => {
        const fragile = await Server.started();
        t.after(() => fragile.discard());
        const [alice, bob] = await confidants(t, fragile, "alice", "bob");
        const roomId = await secretRoomOf(alice, bob);
        const early = await alice.say(roomId, "before the storm");
        await bob.untilReads(roomId, early, "before the storm");

        // Bob is away. The keys of what alice says now wait for him on the server, which is killed.
        bob.stop();
        await alice.crypto.forceDiscardSession(roomId);
        const waiting = await alice.say(roomId, "in the storm");
        await fragile.stop("SIGKILL");
        await fragile.start();
        const back = bob.restored();
        t.after(() => back.stop());
        await back.syncing();
        await back.untilReads(roomId, waiting, "in the storm");
        await back.untilReads(roomId, early, "before the storm");
        const reply = await back.say(roomId, "still here");
        await alice.untilReads(roomId, reply, "still here");
    });
});
