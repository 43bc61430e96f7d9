// A server under test: the real binary on a data folder of its own, started, stopped and killed by process id.
// The binary is named by the variable TEST_SERVER.

import { spawn } from "node:child_process";
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const READY_TIMEOUT_MS = 60_000;

// A port that was free a moment ago. Fixed, not 0: clients must find a restarted server where it was.
async function freePort() {
    const probe = createServer();
    await new Promise((done) => probe.listen(0, "127.0.0.1", done));
    const { port } = probe.address();
    await new Promise((done) => probe.close(done));
    return port;
}

export class Server {
    // A server on a fresh folder, listening; `settings` go behind the usual ones.
    static async started(settings = "") {
        const server = new Server();
        server.folder = mkdtempSync(join(tmpdir(), "skerry-js-sdk-"));
        server.port = await freePort();
        server.url = `http://127.0.0.1:${server.port}`;
        const template = readFileSync(new URL("../../server.toml", import.meta.url), "utf8");
        const data = join(server.folder, "data");
        const config = `${template}\n${settings}`.replaceAll("{port}", server.port).replaceAll("{data}", data);
        writeFileSync(join(server.folder, "config.toml"), config);
        await server.start();
        return server;
    }

    // Starts the process and waits until it listens; returns the milliseconds that took.
    async start() {
        const ready = join(this.folder, "ready.json");
        rmSync(ready, { force: true });
        const began = performance.now();
        const log = openSync(join(this.folder, "server.log"), "a");
        const args = ["serve", "--config", join(this.folder, "config.toml"), "--ready-file", ready];
        this.process = spawn(process.env.TEST_SERVER, args, { stdio: ["ignore", log, log] });
        closeSync(log);
        this.ended = new Promise((done) => this.process.once("exit", (code) => done(code)));
        while (!existsSync(ready)) {
            if (this.process.exitCode !== null) throw new Error(`the server exited\n${this.logTail()}`);
            if (performance.now() - began > READY_TIMEOUT_MS) throw new Error(`the server is not ready\n${this.logTail()}`);
            await sleep(5);
        }
        return performance.now() - began;
    }

    // Sends the signal and waits for the end; returns the exit code (null after a kill).
    async stop(how = "SIGTERM") {
        if (this.process.exitCode === null && this.process.signalCode === null) this.process.kill(how);
        return await this.ended;
    }

    // Stops the server and removes its folder.
    async discard() {
        await this.stop();
        rmSync(this.folder, { recursive: true, force: true });
    }

    logTail() {
        return readFileSync(join(this.folder, "server.log"), "utf8").split("\n").slice(-40).join("\n");
    }
}
