// Makes Hydrogen's static files from the packages of the lock file: `node build.mjs FOLDER`.
// Everything but the page and the service worker is named by its content; what gains by it is there compressed, too.

import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { basename, extname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, gzipSync } from "node:zlib";

import { build } from "esbuild";

// Hosts that the finished files may name. None of them is ever asked for anything: they are names of XML vocabularies,
// links that a person may click, or stand in comments and licences.
const KNOWN_HOSTS = [
    "www.w3.org", // names of vocabularies
    "matrix.to", // links to people and rooms, which Hydrogen opens itself
    "element.io", // a link to a privacy policy
    "github.com", // links to Hydrogen's releases, and comments
    "maps.apple.com", // a link behind a shared location
    "gitlab.matrix.org", "js.foundation", "lodash.com", "underscorejs.org", "www.apache.org", // licences
];

const out = process.argv[2];
if (!out) throw new Error("usage: node build.mjs FOLDER");
const here = fileURLToPath(new URL(".", import.meta.url));
const sdk = join(here, "node_modules/hydrogen-view-sdk");
const olm = join(here, "node_modules/@matrix-org/olm");

rmSync(out, { recursive: true, force: true });
mkdirSync(join(out, "assets"), { recursive: true });

// Files that are fetched by name while the client runs.
const ASSETS = {
    downloadSandbox: copied(join(sdk, "asset-build/assets/download-sandbox.html")),
    worker: copied(join(sdk, "asset-build/assets/main.js"), "worker.js"),
    serviceWorker: "sw.js",
    olm: {
        wasm: copied(join(olm, "olm.wasm")),
        wasmBundle: copied(join(olm, "olm.js")),
        legacyBundle: copied(join(olm, "olm_legacy.js")),
    },
};
cpSync(join(sdk, "lib-build/sw.js"), join(out, "sw.js"));

const made = await build({
    absWorkingDir: here,
    entryPoints: ["main.js", ...["light", "dark"].map((theme) => `hydrogen-view-sdk/theme-element-${theme}.css`)],
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    outdir: out,
    entryNames: "assets/[name]-[hash]",
    assetNames: "assets/[name]-[hash]",
    loader: { ".svg": "file", ".woff": "file", ".woff2": "file" },
    alias: { "@matrix-org/olm/olm.js": "./without-olm.js" },
    define: { ASSETS: JSON.stringify(ASSETS) },
    metafile: true,
    logLevel: "warning",
});

let page = readFileSync(join(here, "index.html"), "utf8");
for (const [path, { entryPoint }] of Object.entries(made.metafile.outputs)) {
    if (entryPoint) page = page.replaceAll(`{${basename(entryPoint)}}`, relative(out, join(here, path)));
}
writeFileSync(join(out, "index.html"), page);
writeFileSync(join(out, "LICENSES.txt"), licences());

const strangers = files().flatMap((path) => hostsIn(path).map((host) => `${relative(out, path)}: ${host}`));
if (strangers.length > 0) throw new Error(`hosts that nobody has looked at:\n${strangers.join("\n")}`);
files().forEach(compress);

// Copies a file to a name that holds its hash, and returns that.
function copied(path, name = basename(path)) {
    const content = readFileSync(path);
    const hash = createHash("sha256").update(content).digest("hex").slice(0, 12);
    const target = `assets/${basename(name, extname(name))}-${hash}${extname(name)}`;
    writeFileSync(join(out, target), content);
    return target;
}

function files() {
    const paths = readdirSync(out, { recursive: true }).map((name) => join(out, name));
    return paths.filter((path) => statSync(path).isFile());
}

function hostsIn(path) {
    if (![".css", ".html", ".js", ".svg"].includes(extname(path))) return [];
    const urls = readFileSync(path, "utf8").matchAll(/\b(?:https?|wss?):\/\/([a-z0-9-]+(?:\.[a-z0-9-]+)+)/gi);
    return [...new Set([...urls].map(([, host]) => host.toLowerCase()))].filter((host) => !KNOWN_HOSTS.includes(host));
}

function compress(path) {
    if ([".woff", ".woff2"].includes(extname(path))) return;
    const content = readFileSync(path);
    for (const [suffix, smaller] of [[".br", brotliCompressSync(content)], [".gz", gzipSync(content, { level: 9 })]]) {
        if (smaller.length < content.length * 0.9) writeFileSync(path + suffix, smaller);
    }
}

// What was put together, and under which terms.
function licences() {
    const lock = JSON.parse(readFileSync(join(here, "package-lock.json"), "utf8"));
    const used = Object.entries(lock.packages).filter(([path]) => path && !/esbuild/.test(path));
    const line = ([path, { version, license = "see the package" }]) => `${path.slice(13)} ${version}: ${license}\n`;
    return used.map(line).join("");
}
