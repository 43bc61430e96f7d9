//! `cargo xtask web`: a web client as static files, made of the packages that `appliance/web/hydrogen` pins.
//!
//! Lives here: bringing the packages (npm checks them against the hashes of the lock file), making the files again when
//! something changed, and where they go (below the target folder: nothing of it is committed). Not here: how they are
//! put together (`appliance/web/hydrogen/build.mjs`), and serving them, which is the server's part.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::clients::{npm_ci, text};
use crate::{needs, run};

const SOURCES: &[&str] = &["package-lock.json", "build.mjs", "index.html", "main.js", "without-olm.js"];

/// `cargo xtask web [FOLDER]`
pub(crate) fn verb(args: &[String]) -> Result<()> {
    let folder = match args {
        [] => client()?,
        [folder] => {
            let folder = std::env::current_dir()?.join(folder);
            if folder.exists() && !folder.join("index.html").exists() && fs::read_dir(&folder)?.next().is_some() {
                bail!("{} holds something that is no web client", folder.display());
            }
            make(&folder)?;
            folder
        }
        _ => bail!("web: takes one folder at most"),
    };
    println!("\nThe web client is there. To serve it, in skerry.toml:\n\n[web]\ndir = \"{}\"", folder.display());
    Ok(())
}

/// The folder with the finished client, made if it is not there or not what it would become now.
pub(crate) fn client() -> Result<PathBuf> {
    let folder = run::target_dir().join("web/hydrogen");
    let stamp = run::target_dir().join("web/hydrogen.stamp");
    let mut hasher = DefaultHasher::new();
    for source in SOURCES {
        fs::read(sources().join(source))?.hash(&mut hasher);
    }
    let now = format!("{:016x}", hasher.finish());
    if fs::read_to_string(&stamp).is_ok_and(|made_of| made_of == now) && folder.join("index.html").exists() {
        return Ok(folder);
    }
    let _ = fs::remove_file(&stamp);
    make(&folder)?;
    fs::write(stamp, now)?;
    Ok(folder)
}

fn make(folder: &Path) -> Result<()> {
    needs::javascript()?;
    npm_ci(&sources(), "Hydrogen")?;
    let mut command = run::command("node", ["build.mjs", &text(folder)?]);
    command.current_dir(sources());
    run::step("the web client", command)
}

fn sources() -> PathBuf {
    run::root().join("appliance/web/hydrogen")
}
