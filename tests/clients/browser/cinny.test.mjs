// Cinny in a browser, as an operator has it on board: a folder with a release. What the other journey shows in detail is
// shown here of a client that many people use. The other side of the conversation is matrix-js-sdk.
//
// TEST_SERVER is the server's binary, SKERRY_CINNY the folder of the client.

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { confidants } from "../js-sdk/confidant.mjs";
import { PASSWORD, until } from "../js-sdk/person.mjs";
import { Browser, PATIENCE_MS } from "./browser.mjs";
import { account, picture, published, says, serverWith } from "./harbour.mjs";

// The smallest picture there is.
const CHART = Buffer.from(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
    "base64",
);

let server, browser;
before(async () => {
    server = await serverWith(process.env.SKERRY_CINNY);
    browser = await Browser.started(server.url);
});
after(async () => {
    await browser?.stop();
    await server?.discard();
});

describe("Cinny in Chromium", { timeout: 300_000 }, () => {
    it("holds an encrypted conversation and finds it again after a reload", async (t) => {
        const [bob] = await confidants(t, server, "bob");
        await published(bob);
        const alice = await account(server, "alice");
        const page = await browser.page();
        t.after(() => page.screenshot({ path: picture("cinny-last.png") }));

        await page.goto(server.url);
        await page.locator("input[name=usernameInput]").fill(alice);
        await page.locator("input[name=passwordInput]").fill(PASSWORD);
        await page.getByRole("button", { name: "Login" }).click();

        await page.getByRole("button", { name: "Create Room" }).first().click();
        await page.locator("input[name=name]").fill("Harbour");
        await page.getByRole("button", { name: "Create", exact: true }).click();
        const composer = page.locator("[data-editable-name=RoomInput]");
        await composer.waitFor();
        await page.getByText("This is the beginning of conversation").waitFor();

        await page.getByRole("button", { name: "Invite Member" }).click();
        const search = page.locator(".invite-user__form input");
        await search.fill(bob.id);
        await search.press("Enter");
        await page.locator(".invite-user").getByRole("button", { name: "Invite", exact: true }).click();
        const invite = () => bob.client.getRooms().find((room) => room.getMyMembership() === "invite");
        const { roomId } = await until(invite, "the invite", PATIENCE_MS);
        await page.locator(".pw__content button").first().click();
        await page.locator(".invite-user").waitFor({ state: "hidden" });
        await bob.client.joinRoom(roomId);
        await page.getByText("joined the room").last().waitFor();

        await composer.pressSequentially("high water at six");
        await composer.press("Enter");
        const heard = await until(() => bob.events(roomId).find(says("high water at six")), "the message", PATIENCE_MS);
        assert.ok(heard.isEncrypted());
        await bob.say(roomId, "then we sail at seven");
        await page.getByText("then we sail at seven").waitFor();

        // A picture goes up encrypted, comes down again, and is shown.
        const chooser = page.waitForEvent("filechooser");
        await composer.locator("xpath=ancestor::*[.//button][1]").getByRole("button").first().click();
        await (await chooser).setFiles({ name: "chart.png", mimeType: "image/png", buffer: CHART });
        await page.getByRole("button", { name: "Send" }).click();
        const sent = await until(() => bob.events(roomId).find(says("chart.png")), "the picture", PATIENCE_MS);
        assert.match(sent.getContent().file.url, /^mxc:/);
        await page.locator('img[alt="chart.png"]').evaluate((image) => image.decode());
        await page.screenshot({ path: picture("cinny.png") });

        await page.reload();
        await page.getByText("then we sail at seven").waitFor();
        await page.getByText("high water at six").waitFor();
        assert.equal(await page.locator("input[name=passwordInput]").count(), 0);
        await bob.say(roomId, "all aboard");
        await page.getByText("all aboard").waitFor();
        browser.assertQuiet();
    });
});
