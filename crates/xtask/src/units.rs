//! The appliance's units and packet filter, judged by systemd and nft themselves.
//!
//! Lives here: how exposed the server's unit may be, as it is and with what a site may lay over it; what systemd and nft say
//! of the files. Not here: whether a box boots with them (that takes a virtual machine).

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::{needs, run};

const SERVER: &str = "systemd/skerry.service";
const SITE: &str = "config/root/usr/lib/skerry/site.conf";
const FILTER: &str = "config/root/etc/nftables.conf";
/// Of `systemd-analyze security`, in tenths: 1.5 of 10.
const EXPOSURE_MAX_TENTHS: u32 = 15;

/// `cargo xtask units`
pub(crate) fn check() -> Result<()> {
    needs::units()?;
    let server = read(SERVER)?;
    exposure("as it is", &server)?;
    exposure("with the site in reach", &format!("{server}\n{}", read(SITE)?))?;
    well_formed()?;
    packet_filter()
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(run::root().join(path)).context(path.to_owned())
}

/// systemd's own figure for a unit.
fn exposure(what: &str, unit: &str) -> Result<()> {
    let dir = scratch()?;
    let path = dir.join("skerry.service");
    fs::write(&path, unit)?;
    let mut analyze = run::command("systemd-analyze", ["security", "--offline=true", "--no-pager"]);
    analyze.arg(format!("--threshold={EXPOSURE_MAX_TENTHS}")).arg(&path);
    let said = run::output(analyze).with_context(|| format!("{SERVER} {what} is too exposed"));
    fs::remove_dir_all(dir)?;
    let said = said?;
    let verdict = said.lines().find(|line| line.contains("Overall exposure level")).context("no verdict of systemd")?;
    println!("{what}: {}", verdict.trim_start_matches(['→', ' ']));
    Ok(())
}

/// Every unit, with a program in the place of ours, which is not on this machine.
fn well_formed() -> Result<()> {
    let dir = scratch()?;
    let mut units = Vec::new();
    for entry in fs::read_dir(run::root().join("systemd"))? {
        let path = entry?.path();
        let Some(name) = path.file_name().filter(|_| path.is_file()) else { continue };
        let to = dir.join(name);
        fs::write(
            &to,
            fs::read_to_string(&path)?
                .replace("/usr/bin/skerry-seal", "/bin/true")
                .replace("/usr/bin/skerry", "/bin/true"),
        )?;
        units.push(to);
    }
    let mut verify = run::command("systemd-analyze", ["verify", "--man=no", "--recursive-errors=no"]);
    verify.args(&units).env("SYSTEMD_UNIT_PATH", format!("{}:", dir.display()));
    let outcome = verify.output().context("systemd-analyze verify")?;
    fs::remove_dir_all(&dir)?;
    let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
    // What else is wrong with this machine's own units is no matter.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains(&*dir.to_string_lossy())).collect();
    if !ours.is_empty() {
        bail!("systemd does not like:\n  {}", ours.join("\n  "));
    }
    println!("{} units are well formed", units.len());
    Ok(())
}

/// Parsed, not loaded. It takes root; CI is root.
fn packet_filter() -> Result<()> {
    if !needs::is_root() {
        println!("{FILTER}: NOT checked (takes root)");
        return Ok(());
    }
    let mut nft = run::command("nft", ["--check", "--file"]);
    nft.arg(run::root().join(FILTER));
    run::output(nft).context(FILTER)?;
    println!("{FILTER}: well formed");
    Ok(())
}

fn scratch() -> Result<std::path::PathBuf> {
    let dir = std::env::temp_dir().join(format!("skerry-units-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    Ok(Path::new(&dir).to_path_buf())
}
