//! Keys for trying: a chain of one root and three signers, so that images and updates can be made without anybody's secrets.
//! They lie below the target folder and are never committed; an image made with them says whom it believes.
//!
//! Lives here: making them with `skerry bundle`, and signing a bundle. Not here: what a chain is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Arch, Recipe, STORE_FORMATS, work};
use crate::{dist, needs, run};

const SIGNERS: [&str; 3] = ["one", "two", "three"];
const PASSPHRASE: &str = "only for trying";

#[derive(Debug)]
pub(crate) struct Trust {
    folder: PathBuf,
    /// The program that signs.
    skerry: PathBuf,
    pub(crate) chain: PathBuf,
}

/// The keys, made if they are not there.
pub(crate) fn ready(programs: &Path) -> Result<Trust> {
    let folder = work().join("trying");
    // The image may be for another processor than ours.
    let ours = if cfg!(target_arch = "aarch64") { Arch::Arm64 } else { Arch::X86_64 };
    let own = dist::folder(ours).join("skerry");
    let theirs = programs.join("skerry");
    let skerry = if !own.exists() && needs::answers(&theirs.to_string_lossy(), &["--version"]) {
        theirs
    } else {
        if !own.exists() {
            dist::build(ours, false)?;
        }
        own
    };
    let trust = Trust { chain: folder.join("chain.txt"), folder, skerry };
    if !trust.chain.exists() {
        let _ = fs::remove_dir_all(&trust.folder);
        trust.make()?;
    }
    Ok(trust)
}

impl Trust {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn skerry(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.skerry);
        command.arg("bundle").args(args).current_dir(&self.folder);
        command
    }

    fn make(&self) -> Result<()> {
        fs::create_dir_all(&self.folder)?;
        fs::write(self.file("passphrase.txt"), format!("{PASSPHRASE}\n"))?;
        let mut new = vec!["root".to_owned(), "new".into(), "--out".into(), "root.json".into()];
        for signer in SIGNERS {
            let key = format!("{signer}.key");
            run::output(self.skerry(&["keygen", &key, "--passphrase-file", "passphrase.txt"]))?;
            let public = public(&run::output(self.skerry(&["key", &key]))?)?;
            new.extend(["--root-key".into(), public.clone(), "--release-key".into(), public]);
        }
        run::output(self.skerry(&new.iter().map(String::as_str).collect::<Vec<_>>()))?;
        run::output(self.skerry(&["root", "request", "root.json", "--out", "root.request"]))?;
        let mut add = vec!["root".to_owned(), "add".into(), "root.json".into(), "--out".into(), "chain.txt".into()];
        for signature in self.sign("root.request", "root")? {
            add.extend(["--signature".into(), signature]);
        }
        run::output(self.skerry(&add.iter().map(String::as_str).collect::<Vec<_>>()))?;
        Ok(())
    }

    /// A signed bundle of an image that was built, packed so hard (1 to 19).
    pub(crate) fn bundle(&self, recipe: &Recipe, out: &Path, level: u32) -> Result<()> {
        let level = level.to_string();
        let (version, security) = (&recipe.version, recipe.security_version.to_string());
        let image = format!("{}={}", recipe.arch.name(), recipe.payload().display());
        let sbom = recipe.folder().join("sbom.json").display().to_string();
        let unsigned = format!("{version}.unsigned");
        for old in [self.file(&unsigned), self.file("release.request"), out.to_owned()] {
            let _ = fs::remove_file(old);
        }
        run::step(
            &format!("a bundle of {version}"),
            self.skerry(&[
                "create",
                "--version",
                version,
                "--security-version",
                &security,
                "--store",
                STORE_FORMATS,
                "--image",
                &image,
                "--sbom",
                &sbom,
                "--roots",
                "chain.txt",
                "--level",
                &level,
                "--out",
                &unsigned,
            ]),
        )?;
        run::output(self.skerry(&["request", &unsigned, "--out", "release.request"]))?;
        let out = out.display().to_string();
        let mut attach = vec!["attach".to_owned(), unsigned.clone(), "--out".into(), out.clone()];
        for signature in self.sign("release.request", "release")? {
            attach.extend(["--signature".into(), signature]);
        }
        run::output(self.skerry(&attach.iter().map(String::as_str).collect::<Vec<_>>()))?;
        fs::remove_file(self.file(&unsigned))?;
        run::step("what a box makes of it", self.skerry(&["verify", &out, "--root", "chain.txt"]))
    }

    /// A bundle without what boxes have that run the release of another.
    pub(crate) fn thin(&self, bundle: &Path, base: &Path, out: &Path) -> Result<()> {
        let _ = fs::remove_file(out);
        let [bundle, base, out] = [bundle, base, out].map(|path| path.display().to_string());
        run::step("a thin bundle", self.skerry(&["thin", "--base", &base, "--out", &out, &bundle]))
    }

    /// Two of the three sign; the names of their signatures.
    fn sign(&self, request: &str, what: &str) -> Result<Vec<String>> {
        let mut signatures = Vec::new();
        for signer in SIGNERS.iter().take(2) {
            let out = format!("{what}.{signer}.signature");
            let _ = fs::remove_file(self.file(&out));
            let key = format!("{signer}.key");
            run::output(self.skerry(&[
                "sign",
                request,
                "--key",
                &key,
                "--passphrase-file",
                "passphrase.txt",
                "--out",
                &out,
            ]))?;
            signatures.push(out);
        }
        Ok(signatures)
    }
}

/// The Base64 in what `skerry bundle key` prints.
fn public(text: &str) -> Result<String> {
    let found = text.lines().find_map(|line| line.strip_prefix("public "));
    Ok(found.with_context(|| format!("no public key in:\n{text}"))?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_key_is_found() {
        assert_eq!(public("key     00ff\npublic  QUJD+/=\n").unwrap(), "QUJD+/=");
        assert!(public("key 00ff\n").is_err());
    }
}
