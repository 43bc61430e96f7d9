// The web client on board, in a browser: what a person sees who opens the server's address, and that nothing on that
// page asks anybody but the server. The other side of the conversation is matrix-js-sdk.
//
// TEST_SERVER is the server's binary, TEST_WEB_CLIENT the folder of the client.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, describe, it } from "node:test";

import { confidants } from "../js-sdk/confidant.mjs";
import { PASSWORD, until } from "../js-sdk/person.mjs";
import { Browser, PATIENCE_MS } from "./browser.mjs";
import { account, picture, published, says, serverWith } from "./harbour.mjs";

let server, browser;
before(async () => {
    server = await serverWith(process.env.TEST_WEB_CLIENT);
    browser = await Browser.started(server.url);
});
after(async () => {
    await browser?.stop();
    await server?.discard();
});

describe("Hydrogen in Chromium", { timeout: 300_000 }, () => {
    it("holds an encrypted conversation and finds it again after a reload", async (t) => {
        const [bob] = await confidants(t, server, "bob");
        await published(bob);
        const alice = await account(server, "alice");
        const page = await browser.page();
        t.after(() => page.screenshot({ path: picture("last.png") }));

        await page.goto(server.url);
        await page.getByPlaceholder("Username").fill(alice);
        await page.getByPlaceholder("Password").fill(PASSWORD);
        await page.getByRole("button", { name: "Log In" }).click();

        await page.getByRole("button", { name: "Create room" }).click();
        await page.getByRole("button", { name: "Create Room", exact: true }).click();
        await page.getByPlaceholder("Enter a room name").fill("Harbour");
        assert.ok(await page.getByLabel("Enable end-to-end encryption").isChecked());
        await page.locator(".CreateRoomView").getByRole("button", { name: "Create room" }).click();
        await page.locator(".RoomList").getByText("Harbour").click();
        const composer = page.getByPlaceholder("Send an encrypted message…");
        await composer.waitFor();

        await page.getByRole("button", { name: "Room options" }).click();
        await page.getByRole("button", { name: "Room details" }).click();
        await page.getByRole("button", { name: "People" }).click();
        await page.getByRole("button", { name: "Invite to this room" }).click();
        await page.getByPlaceholder("Enter user-id of user").fill(bob.id);
        await page.getByRole("button", { name: "Invite", exact: true }).click();
        const invite = () => bob.client.getRooms().find((room) => room.getMyMembership() === "invite");
        const { roomId } = await until(invite, "the invite", PATIENCE_MS);
        await bob.client.joinRoom(roomId);
        await page.getByText(`${bob.id} joined the room`).waitFor();

        await composer.fill("high water at six");
        await composer.press("Enter");
        const heard = await until(() => bob.events(roomId).find(says("high water at six")), "the message", PATIENCE_MS);
        assert.ok(heard.isEncrypted());
        await bob.say(roomId, "then we sail at seven");
        await page.getByText("then we sail at seven").waitFor();

        const [chooser] = await Promise.all([page.waitForEvent("filechooser"), chooseFile(page)]);
        await chooser.setFiles({ name: "tides.txt", mimeType: "text/plain", buffer: Buffer.from("six, twelve") });
        await until(() => bob.events(roomId).find(says("tides.txt")), "the file", PATIENCE_MS);
        const link = page.getByRole("button", { name: "Download tides.txt" });
        const [download] = await Promise.all([page.waitForEvent("download"), link.click()]);
        assert.equal(await readFile(await download.path(), "utf8"), "six, twelve");
        await page.screenshot({ path: picture("conversation.png") });

        await page.reload();
        await page.getByText("then we sail at seven").waitFor();
        await page.getByText("high water at six").waitFor();
        assert.equal(await page.getByPlaceholder("Password").count(), 0);
        browser.assertQuiet();
    });

    it("lets a page ask nobody but the server", async () => {
        const page = await browser.page();
        await page.goto(server.url);
        const refused = await page.evaluate(async () => {
            const image = new Image();
            const failed = new Promise((done) => (image.onerror = () => done("refused")));
            image.src = "https://elsewhere.example/image.png";
            const fetched = fetch("https://elsewhere.example/").then(() => "fetched", () => "refused");
            return [await failed, await fetched];
        });
        assert.deepEqual(refused, ["refused", "refused"]);
        assert.ok(browser.complaints.length >= 2, "the policy says so to the console");
        assert.ok(browser.complaints.every((complaint) => complaint.includes("elsewhere.example")));
        assert.deepEqual(browser.strangers, []);
    });
});

async function chooseFile(page) {
    await page.getByTitle("Pick attachment").click();
    await page.locator(".menu").getByRole("button", { name: "Send file" }).click();
}
