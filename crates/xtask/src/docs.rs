//! Documents that are made from the program: written by `cargo xtask docs`, compared by `cargo xtask ci`.
//!
//! Lives here: which file is the output of which command. Not here: the text, which the program makes; that of
//! the endpoints is put together from its list and others (endpoints.rs).

use anyhow::{Result, bail};

use crate::{clients, endpoints, run};

const ENDPOINTS: &str = "docs/generated/endpoints.md";
const GENERATED: &[(&str, &[&str])] = &[
    (ENDPOINTS, &["docs", "endpoints"]),
    ("docs/generated/settings.md", &["docs", "settings"]),
    ("config/skerry.example.toml", &["docs", "example"]),
];

pub(crate) fn write() -> Result<()> {
    for (path, text) in generated()? {
        std::fs::write(run::root().join(path), text)?;
        println!("wrote {path}");
    }
    Ok(())
}

pub(crate) fn check() -> Result<()> {
    let mut stale = Vec::new();
    for (path, text) in generated()? {
        let document = std::fs::read_to_string(run::root().join(path)).unwrap_or_default();
        let differs = if path == ENDPOINTS { endpoints::is_stale(&document, &text)? } else { document != text };
        if differs {
            stale.push(path);
        }
    }
    if !stale.is_empty() {
        bail!("out of date (cargo xtask docs): {}", stale.join(", "));
    }
    println!("generated documents: {} up to date", GENERATED.len());
    Ok(())
}

fn generated() -> Result<Vec<(&'static str, String)>> {
    let server = clients::server_binary("debug")?;
    let server = server.to_string_lossy();
    let text = |path: &'static str, args: &[&str]| {
        let text = run::output(run::command(&server, args))?;
        Ok((path, if path == ENDPOINTS { endpoints::document(&text)? } else { text }))
    };
    GENERATED.iter().map(|(path, args)| text(path, args)).collect()
}
