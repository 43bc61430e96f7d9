//! The repository's checks of itself, run by `cargo test` and by `cargo xtask self-check`.
//!
//! Lives here: what is checked (layers, banned words, module heads, who may say what, sizes, links), each as a function
//! from files to findings. Not here: crate arrows and licences (they need cargo; arrows.rs, policy.rs), formatting and
//! lints (rustfmt, clippy).

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::tested::TestFile;
use crate::{run, source};

/// A function longer than this is split. The number may be lowered, never raised.
const LONGEST_FUNCTION: usize = 100;
const LARGEST_FILE: u64 = 1 << 20;

/// The layers of `crates/homeserver/src`, lowest first. A module may use what stands in a lower layer, and in its own
/// layer only where `siblings` says so. `lib` is above all of them.
const LAYERS: &[Layer] = &[
    Layer {
        siblings: true,
        modules: &[
            "background",
            "blocking",
            "clock",
            "config",
            "dirs",
            "error",
            "limits",
            "log",
            "maintenance",
            "metrics",
            "notify",
            "outgoing",
            "rng",
            "schema",
            "signing",
            "stored",
        ],
    },
    Layer { siblings: false, modules: &["auth"] },
    Layer { siblings: false, modules: &["e2ee", "media", "push", "rooms", "users"] },
    Layer {
        siblings: false,
        modules: &["delayed", "federation", "housekeeping", "indexing", "jobs", "notices", "previews", "sync"],
    },
    Layer { siblings: false, modules: &["appservice", "gateway"] },
    Layer { siblings: false, modules: &["http"] },
    Layer { siblings: false, modules: &["admin", "client", "federation/server", "web"] },
    Layer { siblings: true, modules: &["api", "server"] },
];

/// Above all layers, like `lib`: the state that all share, which is made of parts from every layer. Others name it as
/// `crate::App`.
const ABOVE: &[&str] = &["lib.rs", "services.rs", "testing.rs"];

struct Layer {
    siblings: bool,
    modules: &'static [&'static str],
}

/// Files (below the top folder) in which `unsafe` may be allowed.
const UNSAFE_ALLOWED: &[&str] = &["crates/init/src/dm.rs", "crates/init/src/watchdog.rs", "crates/skerry/src/rtc.rs"];

/// One text file of the repository.
struct File {
    path: String,
    text: String,
}

type Check = fn(&[File]) -> Vec<String>;

const CHECKS: &[(&str, Check)] = &[
    ("layers of the homeserver", layers),
    ("words that mean unfinished", unfinished),
    ("modules say what lives in them", heads),
    ("error codes are made in one place", error_codes),
    ("the engine is named only where it is driven", engine_name),
    ("functions stay short", long_functions),
    ("unsafe only where allowed", no_unsafe),
    ("crates share the workspace's settings", manifests),
    ("links in the documents resolve", links),
    ("pitfalls have tests", pitfalls),
];

/// `cargo xtask self-check`
pub(crate) fn verb() -> Result<()> {
    let files = files()?;
    let mut wrong = large_files()?;
    for (name, check) in CHECKS {
        let found = check(&files);
        println!("{name}: {}", if found.is_empty() { "ok".into() } else { format!("{} finding(s)", found.len()) });
        wrong.extend(found);
    }
    print!("{}", crate::pitfalls::list(test_sources(&files)));
    let mut lengths: Vec<usize> = product_functions(&files).map(|(_, f)| f.lines).collect();
    lengths.sort_unstable();
    let p90 = lengths.get(lengths.len() * 9 / 10).copied().unwrap_or(0);
    println!("{} files, {} functions, 90th percentile {p90} lines", files.len(), lengths.len());
    if !wrong.is_empty() {
        bail!("{} finding(s):\n  {}", wrong.len(), wrong.join("\n  "));
    }
    Ok(())
}

/// Paths of everything that is or would be committed.
fn paths() -> Result<Vec<String>> {
    let args = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let mut paths: Vec<String> = match run::output(run::command("git", args)) {
        Ok(list) => list.lines().map(str::to_owned).collect(),
        // A source archive, or a machine without git.
        Err(_) => {
            let mut found = Vec::new();
            walk(&run::root(), "", &mut found)?;
            found
        }
    };
    paths.retain(|path| run::root().join(path).is_file());
    paths.sort_unstable();
    Ok(paths)
}

fn walk(dir: &Path, prefix: &str, found: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            if !["target", ".git", "node_modules", "__pycache__"].contains(&name.as_str()) {
                walk(&entry.path(), &format!("{prefix}{name}/"), found)?;
            }
        } else {
            found.push(format!("{prefix}{name}"));
        }
    }
    Ok(())
}

fn files() -> Result<Vec<File>> {
    const TEXT: &[&str] = &["rs", "toml", "md", "py", "js", "mjs", "sh", "json", "txt", "service"];
    let wanted =
        |path: &String| Path::new(path).extension().is_some_and(|e| TEXT.iter().any(|t| e == *t)) || path == ".ci/run";
    paths()?
        .into_iter()
        .filter(wanted)
        .map(|path| {
            let text = std::fs::read_to_string(run::root().join(&path)).with_context(|| path.clone())?;
            Ok(File { path, text })
        })
        .collect()
}

/// The files that hold tests, with where the tests begin in them. Those that ask for everything there is are left out: that
/// they do says nothing of any one thing.
pub(crate) fn test_files() -> Result<Vec<TestFile>> {
    let campaign = |path: &str| path.contains("/tests/bad_input/") || path.contains("/fuzz/");
    let driver = |path: &str| path.starts_with("crates/sim/src/") || path.starts_with("tests/clients/nio/");
    let files = files()?.into_iter().filter(|file| !campaign(&file.path) && !file.path.starts_with("crates/xtask/"));
    let part = |file: File| {
        let whole = driver(&file.path) || (file.path.ends_with(".rs") && is_for_tests(&format!("/{}", file.path)));
        let from = if whole { 0 } else { without_tests(&file.text).len() };
        // The others may have constants that tests use.
        let of_use = whole || file.path.ends_with(".rs");
        of_use.then_some(TestFile { path: file.path, text: file.text, from })
    };
    Ok(files.filter_map(part).collect())
}

fn large_files() -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for path in paths()? {
        let size = std::fs::metadata(run::root().join(&path))?.len();
        if size > LARGEST_FILE {
            wrong.push(format!("{path}: {size} bytes; nothing above {LARGEST_FILE} is committed"));
        }
    }
    Ok(wrong)
}

fn rust(files: &[File]) -> impl Iterator<Item = &File> {
    files.iter().filter(|file| file.path.ends_with(".rs"))
}

/// Rust files of the product: not tests, benches, or the crates that only developers run.
fn product(files: &[File]) -> impl Iterator<Item = &File> {
    rust(files).filter(|file| {
        file.path.starts_with("crates/")
            && file.path.contains("/src/")
            && !file.path.starts_with("crates/xtask/")
            && !file.path.starts_with("crates/sim/")
            && !is_for_tests(&file.path)
    })
}

/// Whether a file holds tests, or what tests are made of.
fn is_for_tests(path: &str) -> bool {
    path.ends_with("tests.rs")
        || path.ends_with("/testing.rs")
        || path.contains("/tests/")
        || path.contains("/fuzz/")
        || path.starts_with("fuzz/")
}

/// The text before the unit tests, which close a file.
fn without_tests(text: &str) -> &str {
    let end = text.find("\n#[cfg(test)]\nmod ").or_else(|| text.find("\n#[cfg(test)]\n#![")).unwrap_or(text.len());
    &text[..end]
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text[..at].bytes().filter(|b| *b == b'\n').count()
}

/// Positions of `word` where it is not a part of a longer word.
fn words<'t>(text: &'t str, word: &'t str) -> impl Iterator<Item = usize> + 't {
    let is_word = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    text.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let bytes = text.as_bytes();
        !is_word(at.checked_sub(1).and_then(|i| bytes.get(i)))
            && (!word.ends_with(|c: char| c.is_alphanumeric() || c == '_') || !is_word(bytes.get(at + word.len())))
    })
}

/// Rust files that may hold tests of the product.
fn test_sources(files: &[File]) -> impl Iterator<Item = &str> {
    rust(files).filter(|file| !file.path.starts_with("crates/xtask/")).map(|file| file.text.as_str())
}

fn pitfalls(files: &[File]) -> Vec<String> {
    crate::pitfalls::check(test_sources(files))
}

fn layers(files: &[File]) -> Vec<String> {
    let mut wrong = Vec::new();
    for file in files {
        let Some(inside) = file.path.strip_prefix("crates/homeserver/src/") else { continue };
        if !inside.ends_with(".rs") || ABOVE.contains(&inside) || is_for_tests(inside) {
            continue;
        }
        let Some((own, level)) = layer_of(inside.trim_end_matches(".rs")) else {
            wrong.push(format!("{}: its module stands in no layer (LAYERS in xtask/src/selfcheck.rs)", file.path));
            continue;
        };
        let code = source::code_only(without_tests(&file.text));
        for (line, used) in crate_uses(&code) {
            match layer_of(&used) {
                Some((module, _)) if module == own => {}
                Some((_, at)) if at < level || (at == level && LAYERS[level].siblings) => {}
                Some((module, _)) => wrong.push(format!("{}:{line}: {own} must not use {module}", file.path)),
                // Something that lib.rs itself holds: above everything.
                None => wrong.push(format!("{}:{line}: {own} must not use crate::{used}", file.path)),
            }
        }
    }
    wrong
}

/// The layered module that a path belongs to (the longest that fits), and its layer.
fn layer_of(path: &str) -> Option<(&'static str, usize)> {
    let fits = |module: &str| path == module || path.strip_prefix(module).is_some_and(|rest| rest.starts_with('/'));
    LAYERS
        .iter()
        .enumerate()
        .flat_map(|(level, layer)| layer.modules.iter().map(move |module| (*module, level)))
        .filter(|(module, _)| fits(module))
        .max_by_key(|(module, _)| module.len())
}

/// Every `crate::a::b` in the code as (line, "a/b"), with groups in braces taken apart one level deep.
fn crate_uses(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for at in words(code, "crate::") {
        let rest = &code[at + "crate::".len()..];
        let line = line_of(code, at);
        let Some(group) = rest.strip_prefix('{') else {
            found.push((line, module_path(rest)));
            continue;
        };
        let mut depth = 0;
        let mut start = 0;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                ',' | '}' if depth == 0 => {
                    found.push((line, module_path(group[start..i].trim())));
                    start = i + 1;
                    if c == '}' {
                        break;
                    }
                }
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    found.retain(|(_, path)| !path.is_empty());
    found
}

/// The leading lower-case segments of a path, joined by `/`.
fn module_path(text: &str) -> String {
    let segment_end = |c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let mut segments = Vec::new();
    let mut rest = text;
    loop {
        let end = rest.find(segment_end).unwrap_or(rest.len());
        if end == 0 || rest[end..].starts_with(|c: char| c.is_ascii_uppercase()) {
            break;
        }
        segments.push(&rest[..end]);
        match rest[end..].strip_prefix("::") {
            Some(next) => rest = next,
            None => break,
        }
    }
    segments.join("/")
}

fn unfinished(files: &[File]) -> Vec<String> {
    // Taken apart, so that this file does not find itself.
    let in_code = [concat!("to", "do!"), concat!("unimpl", "emented!"), concat!("db", "g!"), concat!("#[ign", "ore")];
    let anywhere = [concat!("FIX", "ME"), concat!("X", "XX")];
    let mut wrong = Vec::new();
    for file in files {
        let code = if file.path.ends_with(".rs") { source::code_only(&file.text) } else { String::new() };
        let hits = in_code.iter().flat_map(|w| words_or_marks(&code, w).map(|at| (line_of(&code, at), *w)));
        let marks = anywhere.iter().flat_map(|w| words(&file.text, w).map(|at| (line_of(&file.text, at), *w)));
        wrong.extend(hits.chain(marks).map(|(line, word)| format!("{}:{line}: {word}", file.path)));
    }
    wrong
}

fn words_or_marks<'t>(text: &'t str, mark: &'t str) -> impl Iterator<Item = usize> + 't {
    text.match_indices(mark).map(|(at, _)| at)
}

fn heads(files: &[File]) -> Vec<String> {
    rust(files)
        .filter(|file| !file.text.starts_with("//!"))
        .map(|file| format!("{}: does not open with `//!` (what lives here, what does not)", file.path))
        .collect()
}

fn error_codes(files: &[File]) -> Vec<String> {
    const MAKERS: &[&str] = &["crates/homeserver/src/error.rs", "crates/homeserver/src/http/errors.rs"];
    let mut wrong = Vec::new();
    for file in product(files).filter(|file| !MAKERS.contains(&file.path.as_str())) {
        let text = source::without_comments(without_tests(&file.text));
        wrong.extend(text.match_indices("\"M_").map(|(at, _)| {
            format!("{}:{}: an M_ code; they are made in {}", file.path, line_of(&text, at), MAKERS.join(" and "))
        }));
    }
    wrong
}

fn engine_name(files: &[File]) -> Vec<String> {
    let mut wrong = Vec::new();
    for file in product(files).filter(|file| !file.path.starts_with("crates/store/src/engine")) {
        let text = source::without_comments(&file.text).to_lowercase();
        wrong.extend(
            text.match_indices("rocksdb")
                .map(|(at, _)| format!("{}:{}: names the engine", file.path, line_of(&text, at))),
        );
    }
    wrong
}

fn product_functions(files: &[File]) -> impl Iterator<Item = (&File, source::Function)> {
    rust(files).flat_map(|file| source::functions(&source::code_only(&file.text)).into_iter().map(move |f| (file, f)))
}

fn long_functions(files: &[File]) -> Vec<String> {
    product_functions(files)
        .filter(|(_, f)| f.lines > LONGEST_FUNCTION)
        .map(|(file, f)| {
            format!("{}:{}: fn {} has {} lines, {LONGEST_FUNCTION} is the limit", file.path, f.line, f.name, f.lines)
        })
        .collect()
}

fn no_unsafe(files: &[File]) -> Vec<String> {
    let mut wrong = Vec::new();
    for file in rust(files).filter(|file| !UNSAFE_ALLOWED.contains(&file.path.as_str())) {
        let code = source::code_only(&file.text);
        for word in ["unsafe", "unsafe_code"] {
            wrong.extend(words(&code, word).map(|at| format!("{}:{}: {word}", file.path, line_of(&code, at))));
        }
    }
    wrong
}

fn manifests(files: &[File]) -> Vec<String> {
    const SHARED: &[&str] = &["version.workspace = true", "publish.workspace = true", "[lints]\nworkspace = true"];
    let crates = files.iter().filter(|f| f.path.starts_with("crates/") && f.path.ends_with("/Cargo.toml"));
    let missing = |file: &File| {
        SHARED
            .iter()
            .filter(|line| !file.text.contains(**line))
            .map(|line| format!("{}: without {line:?}", file.path))
            .collect::<Vec<_>>()
    };
    crates.flat_map(missing).collect()
}

/// Relative links of every Markdown file, and the source files that the architecture page names.
fn links(files: &[File]) -> Vec<String> {
    let mut wrong = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        let folder = Path::new(&file.path).parent().unwrap_or(Path::new(""));
        for target in link_targets(&file.text) {
            if let Err(why) = follow(file, folder, target) {
                wrong.push(format!("{}: links to {target}, {why}", file.path));
            }
        }
        if file.path.starts_with("docs/") || file.path == "README.md" {
            wrong.extend(
                named_files(&file.text)
                    .filter(|path| !names_a_file(path))
                    .map(|path| format!("{}: names {path}, which is not there", file.path)),
            );
        }
    }
    wrong
}

/// Whether a link's file, and the heading it points at, are there.
fn follow(from: &File, folder: &Path, target: &str) -> Result<(), &'static str> {
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let full = run::root().join(folder).join(path);
    if !path.is_empty() && !full.exists() {
        return Err("which is not there");
    }
    if anchor.is_empty() || !(path.is_empty() || path.ends_with(".md")) {
        return Ok(());
    }
    let text = if path.is_empty() { from.text.clone() } else { std::fs::read_to_string(full).unwrap_or_default() };
    if anchors(&text).contains(anchor) { Ok(()) } else { Err("which has no such heading") }
}

fn link_targets(markdown: &str) -> impl Iterator<Item = &str> {
    let ends = markdown.match_indices("](").map(|(at, _)| &markdown[at + 2..]);
    ends.filter_map(|rest| rest.split_once(')').map(|(target, _)| target.trim())).filter(|target| {
        !target.contains("://") && !target.starts_with("mailto:") && !target.contains(char::is_whitespace)
    })
}

/// The anchors of the headings, made the way code hosts make them.
fn anchors(markdown: &str) -> BTreeSet<String> {
    let headings =
        markdown.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
    };
    headings.map(anchor).collect()
}

/// What stands in backticks and looks like a Rust file with a folder before it.
fn named_files(markdown: &str) -> impl Iterator<Item = &str> {
    let quoted = markdown.split("```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2));
    quoted.filter(|name| {
        name.ends_with(".rs") && name.contains('/') && !name.contains(char::is_whitespace) && !name.contains('*')
    })
}

/// Paths may be given from the top folder or from `crates/`.
fn names_a_file(path: &str) -> bool {
    let root = run::root();
    root.join(path).is_file() || root.join("crates").join(path).is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_the_repository(check: Check) {
        let wrong = check(&files().unwrap());
        assert!(wrong.is_empty(), "\n  {}\n", wrong.join("\n  "));
    }

    macro_rules! repository_checks {
        ($($check:ident)*) => {
            $(mod $check {
                #[test]
                fn holds_in_this_repository() {
                    super::on_the_repository(super::super::$check);
                }
            })*

            #[test]
            fn every_check_is_a_test() {
                assert_eq!([$(stringify!($check)),*].len(), CHECKS.len());
            }
        };
    }

    repository_checks! { layers unfinished heads error_codes engine_name long_functions no_unsafe manifests links pitfalls }

    #[test]
    fn no_file_is_large() {
        let wrong = large_files().unwrap();
        assert!(wrong.is_empty(), "\n  {}\n", wrong.join("\n  "));
    }

    fn check(check: Check, path: &str, text: &str, findings: usize) {
        let found = check(&[File { path: path.into(), text: text.into() }]);
        assert_eq!(found.len(), findings, "{path}: {text:?} gives {found:?}");
    }

    #[test]
    fn layers_see_wrong_arrows() {
        let at = "crates/homeserver/src/";
        check(layers, &format!("{at}rooms/send.rs"), "use crate::{schema::T, rooms::x, error::Error};", 0);
        check(layers, &format!("{at}rooms/send.rs"), "use crate::media::store;", 1);
        check(layers, &format!("{at}rooms/send.rs"), "use crate::{schema::{A, B}, http::x, users::y};", 2);
        check(layers, &format!("{at}schema.rs"), "fn f() { crate::rooms::send() }", 1);
        check(layers, &format!("{at}client/sync.rs"), "use crate::sync; use crate::rooms::send;", 0);
        check(layers, &format!("{at}client/a.rs"), "use crate::Server;\n", 0);
        check(layers, &format!("{at}client/a.rs"), "use crate::unknown;\n", 1);
        check(layers, &format!("{at}federation/peers.rs"), "use crate::federation::server::x;", 1);
        check(layers, &format!("{at}federation/server/send.rs"), "use crate::federation::ingest;", 0);
        check(layers, &format!("{at}novel.rs"), "", 1);
        check(layers, &format!("{at}error.rs"), "// crate::http\n\n#[cfg(test)]\nmod tests { use crate::http; }", 0);
    }

    #[test]
    fn unfinished_code_is_seen() {
        check(unfinished, "crates/a/src/x.rs", concat!("fn f() { to", "do!() }"), 1);
        check(unfinished, "crates/a/src/x.rs", concat!("// FIX", "ME later\n#[ign", "ore]"), 2);
        check(unfinished, "crates/a/src/x.rs", concat!("// not a to", "do!"), 0);
    }

    #[test]
    fn codes_and_names_are_seen() {
        check(error_codes, "crates/homeserver/src/client/x.rs", "fn f() { g(\"M_FORBIDDEN\") }", 1);
        check(error_codes, "crates/homeserver/src/client/x.rs", "// says \"M_FORBIDDEN\"\n", 0);
        check(error_codes, "crates/homeserver/src/http/errors.rs", "\"M_FORBIDDEN\"", 0);
        check(engine_name, "crates/homeserver/src/x.rs", "let path = \"RocksDB\";", 1);
        check(engine_name, "crates/store/src/engine/rocks.rs", "use rocksdb::DB;", 0);
        check(no_unsafe, "crates/a/src/x.rs", "unsafe { f() } // unsafe", 1);
    }

    #[test]
    fn links_are_followed() {
        check(links, "docs/x.md", "[a](nowhere.md) [b](https://host/x) [c](#top)\n# Top\n", 1);
        check(links, "README.md", "see `crates/xtask/src/main.rs`, `xtask/src/run.rs` and `xtask/src/gone.rs`", 1);
    }
}
