//! Which of Debian's packages an image is made of, and getting them. Apt chooses and checks them; nothing is installed.
//!
//! Lives here: asking apt, reading its answers, the list that stands beside the image. Not here: what is unpacked where
//! (tree.rs).

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::tools::{SUITE, Tools, sources};
use super::{Recipe, list};

/// One package that was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) arch: String,
    pub(super) sha256: String,
    /// The file, as it is called inside the tools.
    pub(super) file: String,
}

#[derive(Debug)]
pub(super) struct Packages {
    /// By name.
    pub(super) all: Vec<Package>,
    /// What the kernel calls itself.
    pub(super) release: String,
}

impl Packages {
    /// The list for people and for comparing two builds.
    pub(super) fn manifest(&self, recipe: &Recipe) -> String {
        let packages: Vec<_> = self
            .all
            .iter()
            .map(|p| json!({ "name": p.name, "version": p.version, "architecture": p.arch, "sha256": p.sha256 }))
            .collect();
        let list = json!({
            "version": recipe.version,
            "architecture": recipe.arch.name(),
            "suite": SUITE,
            "kernel": self.release,
            "packages": packages,
        });
        format!("{list:#}\n")
    }

    pub(super) fn file_of(&self, name: &str) -> Result<&str> {
        let found = self.all.iter().find(|package| package.name == name);
        Ok(&found.with_context(|| format!("no package {name}"))?.file)
    }
}

/// Chooses and fetches what the recipe's list names, and the kernel.
pub(super) fn fetch(tools: &Tools, recipe: &Recipe) -> Result<Packages> {
    let apt = Apt::ready(tools, recipe)?;
    let mut wanted = list("packages.txt")?;
    // The stub of unified kernels and the boot loader are here; none of it gets onto the root.
    wanted.push("systemd-boot-efi".into());
    let flavour = if recipe.hardware { "linux-image-" } else { "linux-image-cloud-" };
    let meta = format!("{flavour}{}", recipe.arch.debian());
    let kernel = apt.depends(&meta)?;
    let call = |how: &'static str| {
        let wanted = wanted.iter().map(String::as_str);
        ["install", "-y", "-q", how].into_iter().chain(wanted).collect::<Vec<_>>()
    };
    // Addresses are printed of what is still to be fetched: asked with a cache that is empty, that is everything.
    let empty = format!("Dir::Cache::archives={}", tools.inside(&apt.empty)?);
    let addresses = [call("--print-uris"), vec!["-o", &empty]].concat();
    let mut files = files(&apt.output("apt-get", &addresses)?);
    apt.step("packages of the root", "apt-get", &call("--download-only"))?;
    // The kernel's package wants what makes initial file systems of many machines: ours is made without it.
    files.extend(self::files(&apt.output("apt-get", &["download", "-q", "--print-uris", &kernel])?));
    if !apt.archives.join(files.last().context("no kernel")?).exists() {
        let archives = tools.inside(&apt.archives)?;
        let line = format!("cd {archives} && exec apt-get download -q {kernel}");
        apt.step("the kernel", "sh", &["-c", &line])?;
    }
    let mut all = apt.described(&files)?;
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let release = kernel.strip_prefix("linux-image-").context("the kernel's name")?.to_owned();
    Ok(Packages { all, release })
}

/// Apt for a machine that has nothing yet, with lists and a cache of its own.
struct Apt<'t> {
    tools: &'t Tools,
    config: String,
    archives: PathBuf,
    /// A cache with nothing in it.
    empty: PathBuf,
}

impl<'t> Apt<'t> {
    fn ready(tools: &'t Tools, recipe: &Recipe) -> Result<Self> {
        let folder = tools.work().join(format!("apt-{}", recipe.arch.debian()));
        let archives = folder.join("archives");
        let empty = folder.join("empty");
        for part in ["lists/partial", "archives/partial", "empty/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::write(folder.join("sources.list"), sources())?;
        let inside = tools.inside(&folder)?;
        fs::write(folder.join("apt.conf"), config(&inside, recipe.arch.debian()))?;
        let apt = Self { tools, config: format!("APT_CONFIG={inside}/apt.conf"), archives, empty };
        apt.step("Debian's list of packages", "apt-get", &["update", "-q"])?;
        Ok(apt)
    }

    fn args<'a>(&'a self, program: &'a str, args: &[&'a str]) -> Vec<&'a str> {
        [&["env", &self.config, program], args].concat()
    }

    fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        self.tools.output(&self.args(program, args))
    }

    fn step(&self, headline: &str, program: &str, args: &[&str]) -> Result<()> {
        self.tools.step(headline, &self.args(program, args))
    }

    /// The one package that another depends on.
    fn depends(&self, meta: &str) -> Result<String> {
        let answer = self.output("apt-cache", &["depends", meta])?;
        let mut found = answer.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one.to_owned()),
            _ => bail!("{meta} depends on one kernel, not on:\n{answer}"),
        }
    }

    /// Looks into the files: what they say of themselves, and their digests.
    fn described(&self, files: &[String]) -> Result<Vec<Package>> {
        let archives = self.tools.inside(&self.archives)?;
        let files: Vec<String> = files.iter().map(|file| format!("{archives}/{file}")).collect();
        let mut sums = vec!["sha256sum"];
        sums.extend(files.iter().map(String::as_str));
        let sums: BTreeMap<String, String> = digests(&self.tools.output(&sums)?);
        let script =
            "for f; do dpkg-deb -W --showformat '${Package} ${Version} ${Architecture} ' \"$f\"; echo \"$f\"; done";
        let mut show = vec!["sh", "-c", script, "show"];
        show.extend(files.iter().map(String::as_str));
        described(&self.tools.output(&show)?, &sums)
    }
}

fn config(folder: &str, arch: &str) -> String {
    format!(
        "Dir::State \"{folder}\";\nDir::State::status \"/dev/null\";\nDir::State::lists \"{folder}/lists\";\n\
         Dir::Cache \"{folder}\";\nDir::Cache::archives \"{folder}/archives\";\n\
         Dir::Etc::sourcelist \"{folder}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
         APT::Architecture \"{arch}\";\nAPT::Architectures {{ \"{arch}\"; }};\nAPT::Install-Recommends \"false\";\n\
         APT::Sandbox::User \"root\";\npkgCacheGen::Essential \"none\";\npkgCacheGen::ForceEssential \",\";\n\
         Acquire::Languages \"none\";\nDebug::NoLocking \"true\";\n"
    )
}

/// Names of files in apt's answer: `'address' file bytes digest`.
fn files(answer: &str) -> Vec<String> {
    let lines = answer.lines().filter(|line| line.starts_with('\''));
    lines.filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
}

/// `digest  file` of each line, by file.
fn digests(answer: &str) -> BTreeMap<String, String> {
    let lines = answer.lines().filter_map(|line| line.split_once("  "));
    lines.map(|(digest, file)| (file.to_owned(), digest.to_owned())).collect()
}

fn described(answer: &str, sums: &BTreeMap<String, String>) -> Result<Vec<Package>> {
    let package = |line: &str| {
        let mut words = line.split_whitespace().map(str::to_owned);
        let (name, version, arch, file) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let sha256 = sums.get(&file)?.clone();
        Some(Package { name, version, arch, sha256, file })
    };
    answer.lines().map(|line| package(line).with_context(|| format!("a package like this: {line}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_would_fetch_is_read() {
        let answer = "Reading package lists...\nNeed to get 21.8 MB\n\
            'http://m/pool/a_1%3a4.0_amd64.deb' a_1%3a4.0_amd64.deb 12812 SHA256:00\n'http://m/b.deb' b_2_all.deb 1 \n";
        assert_eq!(files(answer), ["a_1%3a4.0_amd64.deb", "b_2_all.deb"]);
    }

    #[test]
    fn what_packages_say_of_themselves_is_read() {
        let sums = digests("aa  /w/a.deb\nbb  /w/b.deb\n");
        let found = described("libc6 2.41-12 amd64 /w/a.deb\nzlib1g 1:1.3 amd64 /w/b.deb\n", &sums).unwrap();
        assert_eq!((found[0].name.as_str(), found[0].sha256.as_str()), ("libc6", "aa"));
        assert_eq!((found[1].version.as_str(), found[1].file.as_str()), ("1:1.3", "/w/b.deb"));
        assert!(described("libc6 2.41 amd64 /w/unknown.deb", &sums).is_err());
    }
}
