//! The initial file system: our program, the modules that find the root, which of them are for which devices, the kernel's
//! settings, and the command line once more, to be compared with the one that the kernel got.
//!
//! Lives here: what is in it. Not here: the archive's format (cpio.rs), which modules are needed by which (modules.rs).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::modules::{self, Known, name_of};
use super::tools::Tools;
use super::{Recipe, list};
use crate::run;

/// The root has it, too, for those who want to know.
const SETTINGS: &str = "config/root/usr/lib/sysctl.d/50-skerry.conf";

/// Modules of the initial file system, by the kernel's paths.
#[derive(Debug, PartialEq, Eq)]
struct Modules {
    /// Loaded at every start, in this order.
    always: Vec<String>,
    /// Loaded where there is such a device: the module behind what it needs, and what its devices call themselves.
    drivers: Vec<(Vec<String>, Vec<String>)>,
}

impl Modules {
    fn of(known: &Known, wanted: &[String]) -> Self {
        let hits: Vec<String> = wanted.iter().flat_map(|wish| known.named(wish)).collect();
        let (drivers, always): (Vec<_>, Vec<_>) = hits.into_iter().partition(|path| !known.devices_of(path).is_empty());
        let with_needs = |path: String| {
            let devices = known.devices_of(&path).to_vec();
            (known.with_needs(&[path]), devices)
        };
        Self { always: known.with_needs(&always), drivers: drivers.into_iter().map(with_needs).collect() }
    }

    fn all(&self) -> BTreeSet<&String> {
        self.always.iter().chain(self.drivers.iter().flat_map(|(files, _)| files)).collect()
    }
}

/// The archive.
pub(super) fn write(
    tools: &Tools,
    recipe: &Recipe,
    known: &Known,
    programs: &Path,
    command_line: &str,
    folder: &Path,
) -> Result<Vec<u8>> {
    let lines = list("modules-initrd.txt")?;
    let (everywhere, parameters) = parameters(&lines);
    let mut wanted = everywhere.clone();
    if recipe.hardware {
        wanted.extend(list("modules-initrd-hardware.txt")?);
    }
    known.tell_missing(&wanted);
    let modules = Modules::of(known, &wanted);
    let place = folder.join("initrd-modules");
    fs::create_dir_all(&place)?;
    for path in modules.all() {
        fs::copy(known.file(path), place.join(file_name(path)?))?;
    }
    // What only some racks need stays packed: that is less to be read by firmware at every start.
    let unpacked = Modules::of(known, &everywhere);
    let unpacked =
        unpacked.all().into_iter().map(|path| Ok(place.join(file_name(path)?))).collect::<Result<Vec<_>>>()?;
    modules::unpack(tools, &unpacked)?;
    let name = |path: &String| -> Result<String> {
        let file = file_name(path)?;
        let plain = modules::unpacked(Path::new(file))?;
        let file = if place.join(&plain).exists() { plain.display().to_string() } else { file.to_owned() };
        Ok(format!("modules/{file}"))
    };
    let mut archive = Archive::default();
    archive.folder("dev");
    archive.device("dev/console", 0o600, 5, 1);
    let program = programs.join("skerry-init");
    archive.file("init", 0o755, &fs::read(&program).with_context(|| program.display().to_string())?);
    archive.folder("modules");
    for path in modules.all() {
        let name = name(path)?;
        let file = place.join(file_name(&name)?);
        archive.file(&name, 0o644, &fs::read(&file).with_context(|| file.display().to_string())?);
    }
    archive.file("modules.list", 0o644, list_of(&modules, &parameters, name)?.as_bytes());
    archive.file("modules.alias", 0o644, table_of(&modules, name)?.as_bytes());
    archive.file("sysctl.conf", 0o644, &fs::read(run::root().join(SETTINGS)).context(SETTINGS)?);
    archive.file("command-line", 0o644, command_line.as_bytes());
    Ok(archive.end())
}

fn file_name(path: &str) -> Result<&str> {
    Path::new(path).file_name().and_then(|name| name.to_str()).context("no name")
}

/// Lines of the list without what modules are told behind a space; and that, by the modules' names.
fn parameters(lines: &[String]) -> (Vec<String>, BTreeMap<String, &str>) {
    let split = || lines.iter().map(|line| line.split_once(' ').unwrap_or((line, "")));
    (split().map(|(wish, _)| wish.to_owned()).collect(), split().map(|(wish, told)| (name_of(wish), told)).collect())
}

/// What `skerry-init` reads as `/modules.list`.
fn list_of(
    modules: &Modules,
    parameters: &BTreeMap<String, &str>,
    name: impl Fn(&String) -> Result<String>,
) -> Result<String> {
    let told = |path: &str| parameters.get(&name_of(path)).copied().unwrap_or_default();
    let line = |path| Ok(format!("/{} {}", name(path)?, told(path)).trim_end().to_owned() + "\n");
    modules.always.iter().map(line).collect()
}

/// What `skerry-init` reads as `/modules.alias`: a line with the files, then the patterns.
fn table_of(modules: &Modules, name: impl Fn(&String) -> Result<String>) -> Result<String> {
    let mut text = String::new();
    for (files, devices) in &modules.drivers {
        let files = files.iter().map(|path| Ok(format!("/{}", name(path)?))).collect::<Result<Vec<_>>>()?;
        text.push_str(&format!("{}\n", files.join(" ")));
        devices.iter().for_each(|pattern| text.push_str(&format!("{pattern}\n")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_wait_for_their_devices() {
        let modules = Modules::of(&modules::tests::known(), &["net/".into(), "dm-verity".into()]);
        assert_eq!(modules.always.iter().map(|path| name_of(path)).collect::<Vec<_>>()[..2], ["rs", "b"]);
        assert_eq!(
            modules.drivers,
            [(vec!["kernel/net/a.ko".into()], vec!["pci:v1d2sv*".into(), "acpi*:PNP1:*".into()])]
        );
        let name = |path: &String| Ok(format!("modules/{}", file_name(path)?));
        assert_eq!(table_of(&modules, name).unwrap(), "/modules/a.ko\npci:v1d2sv*\nacpi*:PNP1:*\n");
        let lines = ["rs count=0 a=b".to_owned(), "dm-verity".to_owned()];
        let (wishes, parameters) = parameters(&lines);
        assert_eq!(wishes, ["rs", "dm-verity"]);
        let list = list_of(&modules, &parameters, name).unwrap();
        assert!(list.starts_with("/modules/rs.ko.xz count=0 a=b\n/modules/b.ko\n"), "{list}");
        assert!(list.ends_with("/modules/dm-verity.ko.xz\n"), "{list}");
    }
}
