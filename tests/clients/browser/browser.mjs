// Chromium without a window, and what goes out of it. Addresses that are not this machine's lead to a proxy that takes
// note and hangs up: so nothing is missed, be it asked for by a page, a worker or the browser itself.
//
// TEST_BROWSER is the browser, if it is not Debian's.

import assert from "node:assert/strict";
import { createServer } from "node:net";

import { chromium } from "playwright-core";

export const PATIENCE_MS = 60_000;

// What Chromium asks for itself, whatever page it shows: updates, passwords, accounts. No page gets there unnoticed: what
// pages and their workers ask for is noted before it becomes a connection.
const MAKERS = /(^|\.)(google|googleapis|gstatic|gvt1)\.com$/;

// Hydrogen 0.3.1 looks up a room that it makes before it has given it a name.
const KNOWN_ERRORS = [/getKey\(true\) failed .*archivedRoomSummary/];

export class Browser {
    asked = []; // what pages wanted from other places
    strangers = []; // hosts for which a connection was asked
    complaints = []; // what the pages' policy forbade
    errors = []; // what went wrong in the pages

    static async started(home) {
        const browser = new Browser();
        browser.home = home;
        browser.proxy = createServer((socket) => {
            socket.on("error", () => {});
            socket.once("data", (data) => {
                const [, target] = data.toString("latin1").split(" ");
                const { hostname } = new URL(/^https?:/.test(target) ? target : `https://${target}`);
                if (!MAKERS.test(hostname)) browser.strangers.push(hostname);
                socket.destroy();
            });
        });
        await new Promise((done) => browser.proxy.listen(0, "127.0.0.1", done));
        const args = [`--proxy-server=http://127.0.0.1:${browser.proxy.address().port}`, "--disable-gpu"];
        browser.chromium = await chromium.launch({
            executablePath: process.env.TEST_BROWSER ?? "/usr/bin/chromium",
            args,
            timeout: PATIENCE_MS,
        });
        return browser;
    }

    // A page with storage of its own.
    async page() {
        for (const list of [this.asked, this.strangers, this.complaints, this.errors]) list.length = 0;
        const context = await this.chromium.newContext({ locale: "en-GB", viewport: { width: 1200, height: 800 } });
        context.setDefaultTimeout(PATIENCE_MS);
        context.on("request", (request) => {
            const url = new URL(request.url());
            const local = ["blob:", "data:"].includes(url.protocol);
            if (!local && url.origin !== this.home) this.asked.push(url.href);
        });
        const page = await context.newPage();
        page.on("console", (message) => {
            if (/Content Security Policy/.test(message.text())) this.complaints.push(message.text());
        });
        page.on("pageerror", (error) => {
            if (!KNOWN_ERRORS.some((known) => known.test(error))) this.errors.push(String(error));
        });
        return page;
    }

    // Everything was at home, and the page missed nothing.
    assertQuiet() {
        assert.deepEqual(this.asked, []);
        assert.deepEqual(this.strangers, []);
        assert.deepEqual(this.complaints, []);
        assert.deepEqual(this.errors, []);
    }

    async stop() {
        await this.chromium?.close();
        this.proxy.close();
    }
}
