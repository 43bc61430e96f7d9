//! `cargo xtask image`: from Debian's packages and our static programs to a disk image that boots, and to what an update
//! consists of. The recipe's lists and files lie in `image/`; what they hold is data, how it is put together is here.
//!
//! Lives here: the verb, its choices, and the order of the steps. Not here: the tools (tools.rs), packages (packages.rs), the
//! root (tree.rs), kernel and initial file system (kernel.rs, initrd.rs, modules.rs, cpio.rs), the disk (disk.rs), the bill
//! of materials (sbom.rs), keys for firmware and TPM (keys.rs, efi.rs), keys for trying (trust.rs).

mod cpio;
mod disk;
mod efi;
mod initrd;
mod kernel;
pub(crate) mod keys;
mod modules;
mod packages;
mod sbom;
mod tools;
mod tree;
pub(crate) mod trust;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

pub(crate) use crate::dist::Arch;

use crate::{dist, needs, run};
use keys::Keys;
use tools::Tools;

/// The largest root that is shipped.
const LARGEST_ROOT_BYTES: u64 = 120_000_000;
/// The largest update that is shipped, with everything in it; and for a box that has all but a changed server.
const LARGEST_BUNDLE_BYTES: u64 = 80_000_000;
const LARGEST_THIN_BYTES: u64 = 12_000_000;
/// How hard an update is packed that goes out.
const HARDEST: u32 = 19;
/// Formats of the database that this release reads.
pub(crate) const STORE_FORMATS: &str = "1..1";

/// One image to be made.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) arch: Arch,
    pub(crate) version: String,
    pub(crate) security_version: u64,
    /// The kernel with every driver, in place of the one for virtual machines.
    pub(crate) hardware: bool,
    /// Files that are put over the root at the end: tests break an image with it.
    pub(crate) overlay: Option<PathBuf>,
    /// The chain of roots that the machine believes; keys for trying if none is given.
    pub(crate) trust: Option<PathBuf>,
    /// A web client's files, served by the box.
    pub(crate) web: Option<PathBuf>,
    /// Keys that boot loader and kernel image are signed with; unsigned if none are given.
    pub(crate) keys: Option<Keys>,
    /// Whether firmware in set-up mode gets the keys on machines of any kind, without asking.
    pub(crate) enrol: bool,
    /// Static programs that are built already.
    pub(crate) programs: Option<PathBuf>,
    pub(crate) out: Option<PathBuf>,
}

impl Recipe {
    pub(crate) fn new(arch: Arch) -> Self {
        Self {
            arch,
            version: env!("CARGO_PKG_VERSION").into(),
            security_version: 1,
            hardware: false,
            overlay: None,
            trust: None,
            web: None,
            keys: None,
            enrol: false,
            programs: None,
            out: None,
        }
    }

    /// Where everything of this image is put.
    pub(crate) fn folder(&self) -> PathBuf {
        let name = format!("{}{}", self.arch.name(), if self.hardware { "-hardware" } else { "" });
        self.out.clone().unwrap_or_else(|| work().join(name))
    }

    /// The disk image.
    pub(crate) fn disk(&self) -> PathBuf {
        self.folder().join(format!("skerry_{}_{}.raw", self.version, self.arch.name()))
    }

    /// The update.
    pub(crate) fn bundle(&self) -> PathBuf {
        self.folder().join(format!("skerry_{}_{}.bundle", self.version, self.arch.name()))
    }

    /// The folder with what an update consists of.
    pub(crate) fn payload(&self) -> PathBuf {
        self.folder().join("payload")
    }
}

const USAGE: &str = "\
usage: cargo xtask image [--arch x86_64|arm64] [--version V] [--security-version N] [--hardware]
                         [--trust CHAIN] [--keys FOLDER [--enrol]] [--web FOLDER] [--programs FOLDER]
                         [--overlay FOLDER] [--out FOLDER] [--bundle] [--against BUNDLE]
       cargo xtask image keys FOLDER

  --hardware   the kernel with every driver: racks, and virtual machines that have USB
  --trust      the chain of root documents that the machine believes; without it, keys for trying are made
  --keys       a folder with keys: boot loader and kernel image are signed for Secure Boot, and for the TPM
  --enrol      firmware in set-up mode gets the keys at the first start, on real machines, too
  --web        a web client that the box serves: the folder with its index.html (`cargo xtask web FOLDER` makes one)
  --programs   a folder with skerry, skerry-init and skerry-seal; without it, `cargo xtask dist` builds them
  --overlay    files to be put over the root at the end
  --out        where to put it all, below target/image; without it, target/image/ARCH
  --bundle     an update of it besides, signed with the keys for trying
  --against    the same for boxes that run the release of another bundle, without what they have (a thin bundle)
  keys         makes such a folder
";

pub(crate) fn verb(args: &[String]) -> Result<()> {
    if let [word, folder] = args
        && word == "keys"
    {
        return keys(Path::new(folder));
    }
    let mut recipe = Recipe::new(Arch::X86_64);
    let mut signed = false;
    let mut against = None;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} wants a value\n\n{USAGE}"));
        match arg.as_str() {
            "--arch" => recipe.arch = Arch::parse(value()?)?,
            "--version" => recipe.version = version(value()?)?,
            "--security-version" => recipe.security_version = value()?.parse().context("--security-version")?,
            "--bundle" => signed = true,
            "--against" => against = Some(fs::canonicalize(value()?)?),
            "--hardware" => recipe.hardware = true,
            "--trust" => recipe.trust = Some(fs::canonicalize(value()?)?),
            "--web" => recipe.web = Some(fs::canonicalize(value()?)?),
            "--keys" => recipe.keys = Some(Keys::open(Path::new(value()?))?),
            "--enrol" => recipe.enrol = true,
            "--programs" => recipe.programs = Some(fs::canonicalize(value()?)?),
            "--overlay" => recipe.overlay = Some(fs::canonicalize(value()?)?),
            "--out" => recipe.out = Some(std::path::absolute(value()?)?),
            _ => bail!("{USAGE}"),
        }
    }
    if recipe.enrol && recipe.keys.is_none() {
        bail!("--enrol wants --keys\n\n{USAGE}");
    }
    build(&recipe)?;
    if !signed && against.is_none() {
        return Ok(());
    }
    let keys = trust::ready(&dist::folder(recipe.arch))?;
    let out = recipe.bundle();
    keys.bundle(&recipe, &out, HARDEST)?;
    let mut made = vec![(out.clone(), LARGEST_BUNDLE_BYTES)];
    if let Some(base) = against {
        let thin = out.with_extension("thin.bundle");
        keys.thin(&out, &base, &thin)?;
        made.push((thin, LARGEST_THIN_BYTES));
    }
    for (file, most) in made {
        let bytes = fs::metadata(&file)?.len();
        let note = if bytes > most { ", MORE THAN IT SHALL HAVE" } else { "" };
        println!("{}: {:.2} MB{note}", file.display(), bytes as f64 / 1e6);
    }
    Ok(())
}

fn keys(folder: &Path) -> Result<()> {
    needs::image()?;
    let made = Keys::make(&Tools::ready(&work(), epoch_s()?)?, folder)?;
    println!("{}: keep it from everybody's eyes, and keep a copy", made.folder.display());
    Ok(())
}

/// The keys that tests sign with, made if they are not there.
pub(crate) fn keys_for_trying() -> Result<Keys> {
    let folder = work().join("trying-keys");
    if folder.exists() {
        return Keys::open(&folder);
    }
    needs::image()?;
    Keys::make(&Tools::ready(&work(), epoch_s()?)?, &folder)
}

/// Names of files and partitions are made of it.
fn version(text: &str) -> Result<String> {
    let good = |part: &str| !part.is_empty() && part.len() <= 5 && part.bytes().all(|byte| byte.is_ascii_digit());
    if text.split('.').count() != 3 || !text.split('.').all(good) {
        bail!("a version is MAJOR.MINOR.PATCH, not {text}");
    }
    Ok(text.into())
}

/// Where images, their tools and what they were made of are kept.
pub(crate) fn work() -> PathBuf {
    run::target_dir().join("image")
}

/// Makes one image and all that comes with it.
pub(crate) fn build(recipe: &Recipe) -> Result<()> {
    needs::image()?;
    let programs = match &recipe.programs {
        Some(folder) => folder.clone(),
        None => {
            dist::build(recipe.arch, false)?;
            dist::folder(recipe.arch)
        }
    };
    let epoch_s = epoch_s()?;
    let tools = Tools::ready(&work(), epoch_s)?;
    let folder = recipe.folder();
    let payload = recipe.payload();
    fs::create_dir_all(&payload)?;
    let packages = packages::fetch(&tools, recipe)?;
    let root = tree::build(&tools, recipe, &packages, &programs)?;
    let (image, verity) = (payload.join("root.img"), payload.join("verity.img"));
    let root_hash = disk::seal(&tools, &root, &image, &verity, epoch_s)?;
    fs::write(payload.join("root_hash.txt"), format!("{root_hash}\n"))?;
    kernel::unified(&tools, recipe, &root, &root_hash, &programs, &payload.join("kernel.efi"))?;
    disk::assemble(&tools, recipe, &packages, &root_hash, epoch_s)?;
    fs::write(folder.join("packages.json"), packages.manifest(recipe))?;
    fs::write(folder.join("sbom.json"), sbom::write(recipe, &packages, &sbom::crates(recipe.arch)?))?;
    fs::write(folder.join("programs.txt"), tree::programs(&root.folder)?)?;
    fs::remove_dir_all(&root.folder)?;
    let root_bytes = fs::metadata(&image)?.len();
    if root_bytes > LARGEST_ROOT_BYTES {
        bail!("the root has {root_bytes} bytes; at most {LARGEST_ROOT_BYTES} are shipped");
    }
    report(recipe, &root_hash)
}

fn report(recipe: &Recipe, root_hash: &str) -> Result<()> {
    println!("\nSkerry {} for {}, root hash {root_hash}", recipe.version, recipe.arch.name());
    for part in ["root.img", "verity.img", "kernel.efi"] {
        let bytes = fs::metadata(recipe.payload().join(part))?.len();
        println!("  {part:<11} {:>7.2} MB", bytes as f64 / 1e6);
    }
    println!("  disk        {}", recipe.disk().display());
    println!("  beside it   packages.json, sbom.json, programs.txt, payload/");
    Ok(())
}

/// The time that all files get: the variable that reproducible builds agree on, else when the last commit was made.
fn epoch_s() -> Result<u64> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => run::output(run::command("git", ["log", "-1", "--format=%ct"]))?,
    };
    text.trim().parse().with_context(|| format!("SOURCE_DATE_EPOCH is a number of seconds, not {text:?}"))
}

/// Lines of one of the recipe's lists, without remarks.
fn list(name: &str) -> Result<Vec<String>> {
    let path = recipe_file(name);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(lines(&text))
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

fn recipe_file(name: &str) -> PathBuf {
    run::root().join("image").join(name)
}

/// The part of a path below another, as text.
fn below<'p>(path: &'p Path, folder: &Path) -> Result<&'p str> {
    path.strip_prefix(folder)?.to_str().with_context(|| format!("{}: not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_three_numbers() {
        assert_eq!(version("1.20.3").unwrap(), "1.20.3");
        for bad in ["", "1", "1.2", "1.2.3.4", "1.2.x", "1..3", "1.2.3+3", "1.2.123456"] {
            assert!(version(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_have_remarks() {
        assert_eq!(lines("# why\n one \n\ntwo\n#three"), ["one", "two"]);
    }

    #[test]
    fn every_list_of_the_recipe_is_there_and_says_something() {
        for name in [
            "packages.txt",
            "programs.txt",
            "remove.txt",
            "remove-lines.txt",
            "masked.txt",
            "modules.txt",
            "command-line.txt",
        ] {
            assert!(!list(name).unwrap().is_empty(), "{name}");
        }
    }

    #[test]
    fn the_command_line_restarts_after_a_panic_and_has_no_way_to_a_shell() {
        let words = list("command-line.txt").unwrap();
        assert!(words.iter().any(|word| word.starts_with("panic=")), "{words:?}");
        for word in ["lockdown=integrity", "systemd.import_credentials=no", "fsck.repair=yes"] {
            assert!(words.contains(&word.to_owned()), "{word}: {words:?}");
        }
        assert!(!words.iter().any(|w| w.contains("roothash") || w.starts_with("init=") || w.contains("debug-shell")));
    }
}
