//! Which of the kernel's modules go where: by the recipe's lists, with all that they need, in the order in which they load.
//!
//! Lives here: reading the kernel's own list of what needs what, choosing, and putting modules onto the root. Not here: the
//! initial file system (kernel.rs).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::packages::Packages;
use super::tools::Tools;
use super::tree::Root;
use super::{Recipe, list};

/// What the kernel's package says of its modules: paths below `/usr/lib/modules/RELEASE`.
pub(super) struct Known {
    folder: PathBuf,
    /// What each needs, by path.
    needs: BTreeMap<String, Vec<String>>,
    built_in: BTreeSet<String>,
    /// By a module's name: what the devices that it drives call themselves.
    devices: BTreeMap<String, Vec<String>>,
}

/// Buses whose devices say what fits them, as names of modules begin.
const BUSES: &[&str] = &[
    "acpi", "cpu", "hid", "i2c", "ipmi", "mmc", "nvme", "of", "pci", "platform", "scsi", "sdio", "usb", "virtio",
    "vmbus", "xen",
];

impl Known {
    pub(super) fn read(tools: &Tools, packages: &Packages, root: &Root) -> Result<Self> {
        let folder = root.kernel.join("usr/lib/modules").join(&packages.release);
        if !folder.join("modules.dep").exists() {
            let base = tools.inside(&root.kernel.join("usr"))?;
            tools.step("what modules need", &["depmod", "-b", &base, &packages.release])?;
        }
        let read = |name: &str| fs::read_to_string(folder.join(name)).with_context(|| name.to_owned());
        let built_in = read("modules.builtin")?.lines().map(name_of).collect();
        Ok(Self { needs: needs(&read("modules.dep")?), built_in, devices: devices(&read("modules.alias")?), folder })
    }

    /// The modules that are wanted, each behind what it needs. What this kernel has not is left out.
    pub(super) fn chosen(&self, wanted: &[String]) -> Vec<String> {
        self.with_needs(&wanted.iter().flat_map(|wish| self.named(wish)).collect::<Vec<_>>())
    }

    /// The modules that a line of a list names: one, or all of a folder.
    pub(super) fn named(&self, wish: &str) -> Vec<String> {
        if let Some(folder) = wish.strip_suffix('/') {
            let start = format!("kernel/{folder}/");
            self.needs.keys().filter(|path| path.starts_with(&start)).cloned().collect()
        } else {
            self.needs.keys().filter(|path| name_of(path) == name_of(wish)).cloned().collect()
        }
    }

    /// Says which wishes this kernel has nothing for.
    pub(super) fn tell_missing(&self, wanted: &[String]) {
        for wish in wanted.iter().filter(|wish| self.named(wish).is_empty() && !self.built_in.contains(&name_of(wish)))
        {
            println!("   this kernel has no {wish}");
        }
    }

    /// Modules, each behind what it needs.
    pub(super) fn with_needs(&self, paths: &[String]) -> Vec<String> {
        let mut chosen = Vec::new();
        paths.iter().for_each(|path| self.add(path, &mut chosen));
        chosen
    }

    /// What the devices of a module call themselves; nothing for one that is for no device.
    pub(super) fn devices_of(&self, path: &str) -> &[String] {
        self.devices.get(&name_of(path)).map_or(&[], Vec::as_slice)
    }

    fn add(&self, path: &str, chosen: &mut Vec<String>) {
        if chosen.iter().any(|known| known == path) {
            return;
        }
        // The kernel's list names direct and indirect needs, the nearest first.
        for need in self.needs.get(path).into_iter().flatten().rev() {
            if !chosen.contains(need) {
                self.add(need, chosen);
            }
        }
        chosen.push(path.to_owned());
    }

    pub(super) fn file(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }
}

/// A module's name: both spellings of the dash are one.
pub(super) fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

fn needs(text: &str) -> BTreeMap<String, Vec<String>> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(path, needs)| (path.to_owned(), needs.split_whitespace().map(str::to_owned).collect())).collect()
}

fn devices(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut devices: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if let (Some("alias"), Some(pattern), Some(module)) = (words.next(), words.next(), words.next())
            && pattern.split_once([':', '*']).is_some_and(|(bus, _)| BUSES.contains(&bus))
        {
            devices.entry(name_of(module)).or_default().push(pattern.to_owned());
        }
    }
    devices
}

/// Puts the wanted modules onto the root. Those for virtual machines are few and lie there unpacked: that saves time at
/// every start.
pub(super) fn install(tools: &Tools, recipe: &Recipe, packages: &Packages, root: &Root) -> Result<()> {
    let known = Known::read(tools, packages, root)?;
    let mut wanted = list("modules.txt")?;
    if recipe.hardware {
        wanted.extend(list("modules-hardware.txt")?);
    }
    known.tell_missing(&wanted);
    let chosen = known.chosen(&wanted);
    let folder = root.folder.join("usr/lib/modules").join(&packages.release);
    for path in &chosen {
        let target = folder.join(path);
        fs::create_dir_all(target.parent().context("no folder")?)?;
        fs::copy(known.file(path), target)?;
    }
    for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        fs::copy(known.file(name), folder.join(name)).with_context(|| name.to_owned())?;
    }
    if !recipe.hardware {
        unpack(tools, &chosen.iter().map(|path| folder.join(path)).collect::<Vec<_>>())?;
    }
    let base = tools.inside(&root.folder.join("usr"))?;
    tools.step("modules of the root", &["depmod", "-b", &base, &packages.release])
}

/// Unpacks modules where they lie.
pub(super) fn unpack(tools: &Tools, files: &[PathBuf]) -> Result<()> {
    for (end, program) in [("xz", "xz"), ("zst", "zstd"), ("gz", "gzip")] {
        let packed = files.iter().filter(|file| file.extension().is_some_and(|e| e == end));
        let packed: Vec<String> = packed.map(|file| tools.inside(file)).collect::<Result<_>>()?;
        if packed.is_empty() {
            continue;
        }
        let script = format!("set -e; for f; do {program} -d -q -f \"$f\"; rm -f \"$f\"; done");
        let mut args = vec!["sh", "-c", &script, "unpack"];
        args.extend(packed.iter().map(String::as_str));
        tools.output(&args)?;
    }
    Ok(())
}

/// The file without its packing.
pub(super) fn unpacked(path: &Path) -> Result<PathBuf> {
    match path.extension().and_then(|end| end.to_str()) {
        Some("ko") => Ok(path.to_owned()),
        Some("xz" | "zst" | "gz") => Ok(path.with_extension("")),
        _ => bail!("{} is no module", path.display()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::image) fn known() -> Known {
        Known {
            folder: PathBuf::from("/m"),
            needs: needs(
                "kernel/md/dm-verity.ko.xz: kernel/md/dm-bufio.ko.xz kernel/md/dm-mod.ko.xz kernel/lib/rs.ko.xz\n\
                 kernel/md/dm-bufio.ko.xz: kernel/md/dm-mod.ko.xz\nkernel/md/dm-mod.ko.xz:\nkernel/lib/rs.ko.xz:\n\
                 kernel/net/a.ko:\nkernel/net/sub/b.ko: kernel/lib/rs.ko.xz\n",
            ),
            built_in: BTreeSet::from(["virtio_pci".to_owned()]),
            devices: devices(
                "# Aliases\nalias pci:v1d2sv* a\nalias acpi*:PNP1:* a\nalias fs-ext4 ext4\nalias devname:loop-control b\n",
            ),
        }
    }

    fn check(wanted: &[&str], expected: &[&str]) {
        let wanted: Vec<String> = wanted.iter().map(|w| (*w).to_owned()).collect();
        assert_eq!(known().chosen(&wanted).iter().map(|path| name_of(path)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn modules_stand_behind_what_they_need() {
        check(&["dm-verity"], &["rs", "dm_mod", "dm_bufio", "dm_verity"]);
        check(&["dm_mod", "dm_verity"], &["dm_mod", "rs", "dm_bufio", "dm_verity"]);
        check(&["net/"], &["a", "rs", "b"]);
        check(&["virtio-pci", "unknown"], &[]);
    }

    #[test]
    fn some_modules_are_for_devices() {
        assert_eq!(known().devices_of("kernel/net/a.ko"), ["pci:v1d2sv*", "acpi*:PNP1:*"]);
        assert!(known().devices_of("kernel/net/sub/b.ko").is_empty());
    }

    #[test]
    fn names_have_one_spelling_and_no_packing() {
        assert_eq!(name_of("kernel/drivers/md/dm-verity.ko.xz"), "dm_verity");
        assert_eq!(unpacked(Path::new("/m/dm-verity.ko.zst")).unwrap(), Path::new("/m/dm-verity.ko"));
        assert!(unpacked(Path::new("/m/modules.dep")).is_err());
    }
}
