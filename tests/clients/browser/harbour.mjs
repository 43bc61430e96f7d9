// What the journeys have in common: a server with a web client on board, people, and pictures.
//
// TEST_SERVER is the server's binary, TEST_PICTURES where pictures go.

import assert from "node:assert/strict";
import { join } from "node:path";

import { PASSWORD, freshName, until } from "../js-sdk/person.mjs";
import { Server } from "../js-sdk/server.mjs";
import { PATIENCE_MS } from "./browser.mjs";

// A server that hands out the client in a folder.
export function serverWith(folder) {
    return Server.started(`
[web]
dir = "${folder}"

[well_known]
client_base_url = "http://127.0.0.1:{port}"
`);
}

// A new account without a device.
export async function account(server, stem) {
    const username = freshName(stem);
    const body = { username, password: PASSWORD, auth: { type: "m.login.dummy" }, inhibit_login: true };
    const url = `${server.url}/_matrix/client/v3/register`;
    const answer = await fetch(url, { method: "POST", body: JSON.stringify(body) });
    assert.equal(answer.status, 200, await answer.text());
    return username;
}

// Waits until others can encrypt for somebody's device.
export function published(person) {
    const { client, id, deviceId } = person;
    const known = async () => (await client.downloadKeysForUsers([id])).device_keys[id]?.[deviceId];
    return until(known, `${person.name}'s keys on the server`, PATIENCE_MS);
}

export function says(text) {
    return (event) => event.getContent().body === text;
}

export function picture(name) {
    const path = join(process.env.TEST_PICTURES, name);
    console.log(`picture: ${path}`);
    return path;
}
