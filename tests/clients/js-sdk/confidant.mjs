// A person whose client encrypts, with the SDK's Rust crypto: rooms that only their members can read, recovery, and the
// comparing of emoji.

import "fake-indexeddb/auto"; // Node has no IndexedDB; the SDK keeps a device's keys there.

import assert from "node:assert/strict";

import { CryptoEvent, VerificationPhase } from "matrix-js-sdk/lib/crypto-api/index.js";

import { PASSWORD, Person, peopleOf, roomWith, until } from "./person.mjs";

const SAS = "m.sas.v1";

export class Confidant extends Person {
    constructor(server, name, session) {
        const cryptoCallbacks = {
            getSecretStorageKey: async ({ keys }) => [Object.keys(keys)[0], this.recoveryKey],
        };
        super(server, name, session, { cryptoCallbacks, verificationMethods: [SAS] });
        this.requests = []; // to verify, from other devices
        this.client.on(CryptoEvent.VerificationRequestReceived, (request) => this.requests.push(request));
    }

    get crypto() {
        return this.client.getCrypto();
    }

    get deviceId() {
        return this.session.device_id;
    }

    // The keys of a device outlive its client.
    async syncing(options) {
        await this.client.initRustCrypto({ cryptoDatabasePrefix: `${this.id} ${this.deviceId}` });
        return await super.syncing(options);
    }

    // Waits until an event is there and decrypted, and checks what it says.
    async untilReads(roomId, eventId, body) {
        let event;
        const readable = () => {
            event = this.room(roomId)?.findEventById(eventId) ?? event;
            return event?.isEncrypted() && event.getClearContent() && !event.isDecryptionFailure();
        };
        const why = () => event?.decryptionFailureReason ?? "it has not come";
        await until(readable, { toString: () => `${this.name} to read "${body}" (${why()})` });
        assert.equal(event.getContent().body, body);
    }

    // Waits until this device knows that the other one is there.
    untilKnows(other) {
        const known = async () => {
            const devices = await this.crypto.getUserDeviceInfo([other.id]);
            return devices.get(other.id)?.has(other.deviceId);
        };
        return until(known, `${this.name} to know of ${other.name}'s device`);
    }

    // What the SDK calls to upload cross-signing keys: adds the password when, and only when, the server asks for it.
    auth(password = PASSWORD) {
        return async (upload) => {
            const refusal = await upload(null).then(
                () => null,
                (error) => error,
            );
            this.wasAsked = refusal !== null;
            if (!refusal) return;
            assert.equal(refusal.httpStatus, 401, `${refusal}`);
            const stages = refusal.data.flows.map((flow) => flow.stages);
            assert.ok(stages.some((flow) => flow.length === 1 && flow[0] === "m.login.password"), JSON.stringify(stages));
            const identifier = { type: "m.id.user", user: this.name };
            await upload({ type: "m.login.password", identifier, password, session: refusal.data.session });
        };
    }

    // Cross-signing keys, secret storage and a key backup, like a client offers to a new user.
    async setsUpRecovery() {
        await this.crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: this.auth() });
        const key = await this.crypto.createRecoveryKeyFromPassphrase();
        this.recoveryKey = key.privateKey;
        await this.crypto.bootstrapSecretStorage({ createSecretStorageKey: async () => key, setupNewKeyBackup: true });
        assert.ok(await this.crypto.isSecretStorageReady());
        return key;
    }

    // Waits until the server's backup holds that many keys.
    untilBackedUp(count) {
        const there = async () => (await this.crypto.getKeyBackupInfo()) && (await this.#backup()).count >= count;
        return until(there, `${count} keys of ${this.name} in the backup`);
    }

    #backup() {
        return this.client.http.authedRequest("GET", "/room_keys/version");
    }

    // Waits until a new device knows the public cross-signing keys that the account has.
    untilKnowsItself() {
        return until(() => this.crypto.userHasCrossSigningKeys(), `${this.name}'s own cross-signing keys`);
    }

    // Waits until this device knows that `owner` has signed the given one.
    untilSigned(owner, deviceId) {
        const signed = async () => (await this.crypto.getDeviceVerificationStatus(owner.id, deviceId))?.signedByOwner;
        return until(signed, `${this.name} to see ${owner.name}'s signature`);
    }
}

export const confidants = (test, server, ...stems) => peopleOf(Confidant, test, server, ...stems);

// A private encrypted room that everybody named has joined, and knows to be encrypted.
export async function secretRoomOf(owner, ...members) {
    const content = { algorithm: "m.megolm.v1.aes-sha2" };
    const initial_state = [{ type: "m.room.encryption", state_key: "", content }];
    const roomId = await roomWith({ initial_state }, owner, ...members);
    for (const person of [owner, ...members]) {
        const encrypts = () => person.crypto.isEncryptionEnabledInRoom(roomId);
        await until(encrypts, `${person.name} to know that the room is encrypted`);
    }
    return roomId;
}

// One side has asked (`request`); the other accepts, both look at the same emoji and say so.
export async function compareEmoji(request, other) {
    const theirs = await until(() => other.requests.shift(), "a request to verify");
    await theirs.accept();
    await until(() => request.phase === VerificationPhase.Ready, "the request to be accepted");
    const ours = await request.startVerification(SAS);
    const verifiers = [ours, await until(() => theirs.verifier, "the start")];
    const ends = Promise.all(verifiers.map((verifier) => verifier.verify()));
    const shown = Promise.all(
        verifiers.map((verifier) => until(() => verifier.getShowSasCallbacks(), "the emoji")),
    );
    // A verification that is called off says why.
    const [one, another] = await Promise.race([shown, ends.then(() => assert.fail("ended before anything was shown"))]);
    assert.equal(one.sas.emoji.length, 7);
    assert.deepEqual(one.sas.emoji, another.sas.emoji);
    await Promise.all([one.confirm(), another.confirm()]);
    await ends;
    const done = () => [request, theirs].every((side) => side.phase === VerificationPhase.Done);
    await until(done, "both sides to be done");
}
