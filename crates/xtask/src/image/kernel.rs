//! The unified kernel image: the kernel, an initial file system of one program and some modules, and the command line with
//! the root hash, in one file that firmware can start and that can be signed.
//!
//! Lives here: putting it together. Not here: the initial file system (initrd.rs).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::modules::Known;
use super::packages::Packages;
use super::tools::Tools;
use super::tree::Root;
use super::{Arch, Recipe, initrd, list};

pub(super) fn unified(
    tools: &Tools,
    recipe: &Recipe,
    root: &Root,
    root_hash: &str,
    programs: &Path,
    out: &Path,
) -> Result<()> {
    let folder = root.folder.parent().context("no folder")?;
    let release = release(root)?;
    let packages = Packages { all: Vec::new(), release: release.clone() };
    let known = Known::read(tools, &packages, root)?;
    let initrd = folder.join("initrd.cpio");
    let words = command_line(recipe.arch, &list("command-line.txt")?, root_hash);
    fs::write(&initrd, initrd::write(tools, recipe, &known, programs, &words, folder)?)?;
    let line = folder.join("command-line.txt");
    fs::write(&line, &words)?;
    let stub = root.efi.join("usr/lib/systemd/boot/efi").join(stub(recipe.arch));
    let [kernel, initrd, line, stub, osrel, out] = [
        root.kernel.join("boot").join(format!("vmlinuz-{release}")),
        initrd,
        line,
        stub,
        root.folder.join("usr/lib/os-release"),
        out.to_owned(),
    ]
    .map(|path| tools.inside(&path));
    let mut args = vec![
        "ukify".to_owned(),
        "build".into(),
        format!("--linux={}", kernel?),
        format!("--initrd={}", initrd?),
        format!("--cmdline=@{}", line?),
        format!("--os-release=@{}", osrel?),
        format!("--uname={release}"),
        format!("--efi-arch={}", efi(recipe.arch)),
        format!("--stub={}", stub?),
        format!("--output={}", out?),
    ];
    if let Some(keys) = &recipe.keys {
        args.extend(keys.of_kernel(tools)?);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    tools.with_keys(recipe.keys.as_ref()).step("the unified kernel image", &args)
}

/// What the only kernel calls itself.
fn release(root: &Root) -> Result<String> {
    let entries = fs::read_dir(root.kernel.join("usr/lib/modules"))?;
    let mut names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.next().context("no kernel")
}

fn command_line(arch: Arch, words: &[String], root_hash: &str) -> String {
    // The last one is where the kernel's own messages go first.
    let consoles: &[&str] = match arch {
        Arch::X86_64 => &["console=tty0", "console=ttyS0"],
        Arch::Arm64 => &["console=tty0", "console=ttyAMA0"],
    };
    let hash = format!("roothash={root_hash}");
    let all = consoles.iter().copied().chain(words.iter().map(String::as_str)).chain([hash.as_str()]);
    all.collect::<Vec<_>>().join(" ")
}

/// What firmware calls the processor.
pub(super) fn efi(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "x64",
        Arch::Arm64 => "aa64",
    }
}

fn stub(arch: Arch) -> String {
    format!("linux{}.efi.stub", efi(arch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_hash_ends_the_command_line() {
        let line = command_line(Arch::Arm64, &["quiet".into(), "panic=10".into()], "00ff");
        assert_eq!(line, "console=tty0 console=ttyAMA0 quiet panic=10 roothash=00ff");
    }
}
