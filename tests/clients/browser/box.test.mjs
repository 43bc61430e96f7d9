// The first login at an appliance, in a browser that trusts the box's own authority as any device of the site would. The
// site's DNS is a line that leads the box's name to the machine under test; every other name leads nowhere.
//
// TEST_BOX is the box's name, TEST_BOX_PORT where it is on loopback, TEST_PASSWORD that of `admin`, TEST_PICTURES a folder.
// Chromium finds the authority in the home folder.

import assert from "node:assert/strict";
import { join } from "node:path";
import { it } from "node:test";

import { chromium } from "playwright-core";

// For a machine that is emulated on a builder that has much else to do.
const PATIENCE_MS = 300_000;
const { TEST_BOX, TEST_BOX_PORT, TEST_PASSWORD, TEST_PICTURES } = process.env;
const HOME = `https://${TEST_BOX}`;

it("lets the administrator in, who makes an encrypted room and finds it after a reload", { timeout: 4 * PATIENCE_MS }, async (t) => {
    const browser = await chromium.launch({
        executablePath: process.env.TEST_BROWSER ?? "/usr/bin/chromium",
        args: [`--host-resolver-rules=MAP ${TEST_BOX}:443 127.0.0.1:${TEST_BOX_PORT}, MAP * ~NOTFOUND`, "--disable-gpu"],
        timeout: PATIENCE_MS,
    });
    let page;
    t.after(async () => {
        await page?.screenshot({ path: join(TEST_PICTURES, "last.png") });
        await browser.close();
    });
    const context = await browser.newContext({ locale: "en-GB", viewport: { width: 1200, height: 800 } });
    context.setDefaultTimeout(PATIENCE_MS);
    const elsewhere = [];
    context.on("request", (request) => {
        const url = new URL(request.url());
        if (!["blob:", "data:"].includes(url.protocol) && url.origin !== HOME) elsewhere.push(url.href);
    });
    page = await context.newPage();

    await page.goto(HOME, { timeout: PATIENCE_MS });
    await page.getByPlaceholder("Username").fill("admin");
    await page.getByPlaceholder("Password").fill(TEST_PASSWORD);
    await page.getByRole("button", { name: "Log In" }).click();
    await page.getByRole("button", { name: "Create room" }).click();
    await page.getByRole("button", { name: "Create Room", exact: true }).click();
    await page.getByPlaceholder("Enter a room name").fill("Harbour");
    assert.ok(await page.getByLabel("Enable end-to-end encryption").isChecked());
    await page.locator(".CreateRoomView").getByRole("button", { name: "Create room" }).click();
    await page.locator(".RoomList").getByText("Harbour").click();
    const composer = page.getByPlaceholder("Send an encrypted message…");
    await composer.fill("the box is up");
    await composer.press("Enter");
    await page.getByText("the box is up").waitFor();
    await page.screenshot({ path: join(TEST_PICTURES, "conversation.png") });

    await page.reload({ timeout: PATIENCE_MS });
    await page.locator(".RoomList").getByText("Harbour").click();
    await page.getByText("the box is up").waitFor();
    assert.deepEqual(elsewhere, []);
});
