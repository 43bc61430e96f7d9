//! The root file system as a folder: packages unpacked, what is not needed taken out, our files put in. No package's script
//! runs, so the same packages give the same files, for a foreign processor too.
//!
//! Lives here: the steps, and the look at which programs are left. Not here: the choice (lists in `image/`), making a file
//! system of the folder (disk.rs).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::packages::Packages;
use super::tools::Tools;
use super::{Arch, Recipe, STORE_FORMATS, below, list, modules, recipe_file, trust};
use crate::run;

/// The root before it is sealed.
pub(super) struct Root {
    pub(super) folder: PathBuf,
    /// Everything that the kernel's package brings: the kernel itself and all modules.
    pub(super) kernel: PathBuf,
    /// Stub and boot loader.
    pub(super) efi: PathBuf,
}

/// Programs of ours, in `/usr/bin`.
const PROGRAMS: [&str; 2] = ["skerry", "skerry-seal"];
/// Bits of programs that run as somebody else.
const SET_ID: u32 = 0o6000;
/// The server's user, the same on every box, so that a disk can move.
const OURS: &[(&str, &str)] = &[("systemd", "usr/lib/systemd/system"), ("config/root", "")];
/// Where a web client lies, and what tells the server so. The image brings and takes it, whatever a box's settings say.
const WEB: &str = "usr/lib/skerry/web";
const WEB_UNIT: &str = "usr/lib/systemd/system/skerry.service.d/10-web-client.conf";

pub(super) fn build(tools: &Tools, recipe: &Recipe, packages: &Packages, programs: &Path) -> Result<Root> {
    let work = tools.work().join(format!("unpacked-{}", recipe.arch.name()));
    let _ = fs::remove_dir_all(&work);
    let root = Root { folder: work.join("root"), kernel: work.join("kernel"), efi: work.join("efi") };
    unpack(tools, packages, &root)?;
    take_out(&root.folder)?;
    modules::install(tools, recipe, packages, &root)?;
    put_in(recipe, programs, &root.folder)?;
    settle(tools, recipe, &root.folder)?;
    if let Some(overlay) = &recipe.overlay {
        copy_tree(overlay, &root.folder)?;
    }
    no_other_programs(&root.folder)?;
    Ok(root)
}

fn unpack(tools: &Tools, packages: &Packages, root: &Root) -> Result<()> {
    let folders = [&root.folder, &root.kernel, &root.efi];
    for folder in folders {
        fs::create_dir_all(folder)?;
    }
    let [to_root, to_kernel, to_efi] = folders.map(|folder| tools.inside(folder));
    let (to_root, to_kernel, to_efi) = (to_root?, to_kernel?, to_efi?);
    let mut lines = String::from("set -e\n");
    for package in &packages.all {
        let folder = match package.name.as_str() {
            name if name.starts_with("linux-image-") => &to_kernel,
            name if name.starts_with("systemd-boot-efi") => &to_efi,
            _ => &to_root,
        };
        lines.push_str(&format!("dpkg-deb -x '{}' {folder}\n", package.file));
    }
    tools.step("unpack the packages", &["sh", "-c", &lines])
}

/// Takes out what no appliance needs: trees by the list of what goes, programs by the list of what stays.
fn take_out(root: &Path) -> Result<()> {
    for pattern in list("remove.txt")? {
        for path in matching(root, &pattern)? {
            remove(&path)?;
        }
    }
    for line in list("remove-lines.txt")? {
        let (file, part) = line.split_once(' ').with_context(|| format!("remove-lines.txt: {line}"))?;
        let path = root.join(file);
        let text = fs::read_to_string(&path).with_context(|| file.to_owned())?;
        write(&path, &without_lines(&text, part).with_context(|| format!("{file} has no {part}"))?)?;
    }
    let stay: BTreeSet<String> = list("programs.txt")?.into_iter().collect();
    for folder in ["usr/bin", "usr/sbin"] {
        for path in sorted(&root.join(folder))? {
            if !stay.contains(below(&path, root)?) {
                remove(&path)?;
            }
        }
    }
    clear_set_id(root)?;
    fs::create_dir_all(root.join("var"))?;
    Ok(())
}

/// The text without the lines that have a part; nothing if there are none.
fn without_lines(text: &str, part: &str) -> Option<String> {
    let stay: String = text.split_inclusive('\n').filter(|line| !line.contains(part)).collect();
    (stay.len() < text.len()).then_some(stay)
}

/// Paths below the root that a pattern with `*` in its last parts names.
fn matching(root: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    let mut found = vec![root.to_owned()];
    for part in pattern.split('/') {
        let mut next = Vec::new();
        for folder in found {
            if !part.contains('*') {
                let path = folder.join(part);
                next.extend(path.symlink_metadata().is_ok().then_some(path));
            } else if folder.is_dir() {
                let entries = sorted(&folder)?;
                next.extend(entries.into_iter().filter(|path| {
                    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name_matches(name, part))
                }));
            }
        }
        found = next;
    }
    Ok(found)
}

/// Whether a name is like a pattern, in which `*` stands for anything.
fn name_matches(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|tail| {
            (0..=tail.len()).filter(|at| tail.is_char_boundary(*at)).any(|at| name_matches(&tail[at..], rest))
        }),
    }
}

/// Puts in the recipe's files, the product's, and the programs.
fn put_in(recipe: &Recipe, programs: &Path, root: &Path) -> Result<()> {
    copy_tree(&recipe_file("root"), root)?;
    for (from, to) in OURS {
        copy_tree(&run::root().join(from), &root.join(to))?;
    }
    put(&run::root().join("appliance/appliance.toml"), &root.join("usr/lib/skerry/appliance.toml"), 0o644)?;
    if let Some(client) = &recipe.web {
        web_client(client, root)?;
    }
    let system = root.join("etc/systemd/system");
    fs::create_dir_all(&system)?;
    for unit in list("masked.txt")? {
        let _ = fs::remove_file(system.join(&unit));
        symlink("/dev/null", system.join(unit))?;
    }
    let chain = match &recipe.trust {
        Some(chain) => chain.clone(),
        None => trust::ready(programs)?.chain,
    };
    put(&chain, &root.join("usr/lib/skerry/trust/root.json"), 0o644)?;
    for program in PROGRAMS {
        put(&programs.join(program), &root.join("usr/bin").join(program), 0o755)?;
    }
    write(&root.join("usr/lib/os-release"), &os_release(recipe))
}

fn web_client(client: &Path, root: &Path) -> Result<()> {
    if !client.join("index.html").is_file() {
        bail!("{}: a web client has an index.html at its top", client.display());
    }
    copy_tree(client, &root.join(WEB))?;
    write(&root.join(WEB_UNIT), &format!("[Service]\nEnvironment=SKERRY_WEB__DIR=/{WEB}\n"))
}

fn os_release(recipe: &Recipe) -> String {
    let (version, security) = (&recipe.version, recipe.security_version);
    format!(
        "ID=skerry\nID_LIKE=debian\nNAME=Skerry\nPRETTY_NAME=\"Skerry {version}\"\nVERSION_ID={version}\n\
         IMAGE_ID=skerry\nIMAGE_VERSION={version}\nSKERRY_SECURITY_VERSION={security}\n\
         SKERRY_STORE_FORMATS={STORE_FORMATS}\n"
    )
}

/// What packages' scripts would have done: users, enabled units, places to mount at.
fn settle(tools: &Tools, recipe: &Recipe, root: &Path) -> Result<()> {
    for folder in ["dev", "efi", "etc", "proc", "root", "run", "sys", "tmp", "var"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let inside = format!("--root={}", tools.inside(root)?);
    tools.step("users", &["systemd-sysusers", &inside])?;
    tools.step("units", &["systemctl", &inside, "preset-all"])?;
    for left in ["etc/.pwd.lock", "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-"] {
        let _ = fs::remove_file(root.join(left));
    }
    // Empty: the machine's own comes from its firmware, and is put over it.
    write(&root.join("etc/machine-id"), "")?;
    if recipe.arch == Arch::Arm64 {
        return Ok(());
    }
    let lib64 = root.join("lib64");
    if !lib64.exists() {
        bail!("no place for the dynamic loader: {}", lib64.display());
    }
    Ok(())
}

/// An error if a program has come in that nobody has named, or one that runs as somebody else.
fn no_other_programs(root: &Path) -> Result<()> {
    let mut named: BTreeSet<String> = list("programs.txt")?.into_iter().collect();
    named.extend(PROGRAMS.iter().map(|program| format!("usr/bin/{program}")));
    for folder in ["usr/bin", "usr/sbin"] {
        for path in sorted(&root.join(folder))? {
            let name = below(&path, root)?;
            if !named.contains(name) {
                bail!("{name} is not in image/programs.txt");
            }
        }
    }
    match programs(root)?.lines().find(|line| line.ends_with(" runs as its owner")) {
        None => Ok(()),
        Some(line) => bail!("{line}"),
    }
}

/// Every executable file, for the list beside the image.
pub(super) fn programs(root: &Path) -> Result<String> {
    let mut text = String::new();
    walk(root, &mut |path, metadata| {
        let library = path.to_string_lossy().contains(".so");
        if metadata.is_file() && metadata.mode() & 0o111 != 0 && !library {
            let note = if metadata.mode() & SET_ID == 0 { "" } else { " runs as its owner" };
            text.push_str(&format!("/{}{note}\n", below(path, root)?));
        }
        Ok(())
    })?;
    Ok(text)
}

fn clear_set_id(root: &Path) -> Result<()> {
    walk(root, &mut |path, metadata| {
        if metadata.is_file() && metadata.mode() & SET_ID != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(metadata.mode() & 0o777))?;
        }
        Ok(())
    })
}

/// Everything below a folder, in order of names.
pub(super) fn walk(folder: &Path, look: &mut impl FnMut(&Path, &fs::Metadata) -> Result<()>) -> Result<()> {
    for path in sorted(folder)? {
        let metadata = path.symlink_metadata()?;
        look(&path, &metadata)?;
        if metadata.is_dir() {
            walk(&path, look)?;
        }
    }
    Ok(())
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    Ok(paths)
}

/// Copies files, folders and links; modes are those that everybody's clone has.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for path in sorted(from)? {
        let target = to.join(path.file_name().context("no name")?);
        let metadata = path.symlink_metadata()?;
        if metadata.is_dir() {
            copy_tree(&path, &target)?;
        } else if metadata.is_symlink() {
            // In place of a file, or of a folder with nothing in it.
            let _ = fs::remove_file(&target).or_else(|_| fs::remove_dir(&target));
            symlink(fs::read_link(&path)?, &target).with_context(|| target.display().to_string())?;
        } else {
            put(&path, &target, if metadata.mode() & 0o100 == 0 { 0o644 } else { 0o755 })?;
        }
    }
    Ok(())
}

/// Copies a file in place of what is there, be it a link.
fn put(from: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(to.parent().context("no folder")?)?;
    let _ = fs::remove_file(to);
    fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(mode))?)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::create_dir_all(path.parent().context("no folder")?)?;
    let _ = fs::remove_file(path);
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o644))?)
}

fn remove(path: &Path) -> Result<()> {
    let metadata = path.symlink_metadata()?;
    if metadata.is_dir() { Ok(fs::remove_dir_all(path)?) } else { Ok(fs::remove_file(path)?) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_patterns() {
        for (name, pattern, expected) in [
            ("libdb-5.3.so", "libdb-*", true),
            ("libdb.so", "libdb-*", false),
            ("a", "*", true),
            ("systemd-hostnamed", "systemd-*d", true),
            ("systemd-hostname", "systemd-*d", false),
            ("x.service", "*.service", true),
            ("abcabc", "a*c*c", true),
            ("plain", "plain", true),
            ("plainer", "plain", false),
        ] {
            assert_eq!(name_matches(name, pattern), expected, "{name} {pattern}");
        }
    }

    #[test]
    fn lines_go_by_what_is_in_them() {
        assert_eq!(without_lines("one\ntwo sysctl\nthree", "sysctl").as_deref(), Some("one\nthree"));
        assert_eq!(without_lines("one\n", "sysctl"), None);
    }

    #[test]
    fn no_program_that_stays_lets_anybody_in() {
        let stay = list("programs.txt").unwrap();
        for barred in
            ["sh", "bash", "dash", "su", "login", "agetty", "getty", "sulogin", "sshd", "dpkg", "apt", "apt-get"]
        {
            for folder in ["usr/bin", "usr/sbin"] {
                assert!(!stay.contains(&format!("{folder}/{barred}")), "{barred}");
            }
        }
    }

    #[test]
    fn a_web_client_is_a_folder_with_a_page() {
        let dir = std::env::temp_dir().join(format!("xtask-web-{}", std::process::id()));
        let (client, root) = (dir.join("client"), dir.join("root"));
        fs::create_dir_all(client.join("assets")).unwrap();
        fs::write(client.join("assets/main.js"), "run()").unwrap();
        assert!(web_client(&client, &root).unwrap_err().to_string().contains("index.html"));
        assert!(!root.exists());

        fs::write(client.join("index.html"), "<p>").unwrap();
        web_client(&client, &root).unwrap();
        assert_eq!(fs::read_to_string(root.join(WEB).join("assets/main.js")).unwrap(), "run()");
        let unit = fs::read_to_string(root.join(WEB_UNIT)).unwrap();
        assert!(unit.ends_with("Environment=SKERRY_WEB__DIR=/usr/lib/skerry/web\n"), "{unit}");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_an_image_says_of_itself() {
        let mut recipe = Recipe::new(Arch::X86_64);
        recipe.version = "1.2.3".into();
        let text = os_release(&recipe);
        assert!(text.lines().any(|line| line == "IMAGE_VERSION=1.2.3"), "{text}");
        assert!(text.lines().any(|line| line == "SKERRY_SECURITY_VERSION=1"), "{text}");
    }
}
