//! Keys of whoever ships images: firmware starts only what the first one has signed, and the data partition opens for kernels
//! that the second one has signed. They are files in one folder, which is never below the repository's target folder unless
//! they are for trying.
//!
//! Lives here: their names, making them, signing boot loader and kernel images, and what a firmware takes to trust them. Not
//! here: the release's own keys (trust.rs), the rest of a kernel image (kernel.rs), firmware's formats (efi.rs).

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::efi;
use super::tools::{KEYS_INSIDE, Tools};
use crate::run;

/// The key that firmware knows, and its certificate.
const SECURE_BOOT_KEY: &str = "secure-boot.key";
const SECURE_BOOT_CERTIFICATE: &str = "secure-boot.pem";
/// The key for what a kernel image measures to be, and its public half.
const MEASURE_KEY: &str = "measure.key";
const MEASURE_PUBLIC: &str = "measure.pub";
const YEARS: u32 = 20;

/// A folder with keys that is good to be used.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(super) folder: PathBuf,
    /// Whether there is one for measurements.
    measures: bool,
}

impl Keys {
    /// Looks at the folder.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let folder = fs::canonicalize(folder).with_context(|| folder.display().to_string())?;
        for name in [SECURE_BOOT_KEY, SECURE_BOOT_CERTIFICATE] {
            if !folder.join(name).is_file() {
                bail!("{} has no {name}; `cargo xtask image keys FOLDER` makes keys", folder.display());
            }
        }
        let [key, public] = [MEASURE_KEY, MEASURE_PUBLIC].map(|name| folder.join(name).is_file());
        if key != public {
            bail!("{} has one of {MEASURE_KEY} and {MEASURE_PUBLIC}, and not the other", folder.display());
        }
        Ok(Self { folder, measures: key })
    }

    /// Makes all of them, in a folder that only its owner can look into.
    pub(super) fn make(tools: &Tools, folder: &Path) -> Result<Self> {
        if folder.exists() {
            bail!("{} is there already; keys are not overwritten", folder.display());
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let folder = fs::canonicalize(folder)?;
        let days = YEARS * 365;
        let script = format!(
            "set -e; umask 077; cd {KEYS_INSIDE}; exec 2>openssl.log; \
             openssl req -x509 -newkey rsa:3072 -nodes -sha256 -days {days} -subj '/CN=Secure Boot of an appliance/' \
             -keyout {SECURE_BOOT_KEY} -out {SECURE_BOOT_CERTIFICATE}; \
             openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072 -out {MEASURE_KEY}; \
             openssl pkey -in {MEASURE_KEY} -pubout -out {MEASURE_PUBLIC}; rm openssl.log"
        );
        let made = Self { folder, measures: true };
        tools.with_keys(Some(&made)).step("keys", &["sh", "-c", &script])?;
        Self::open(&made.folder)
    }

    /// Arguments for `ukify`: the image is signed, and so is what a TPM will measure of it before anything else is measured.
    pub(super) fn of_kernel(&self, tools: &Tools) -> Result<Vec<String>> {
        let mut args = vec![
            // The kernel within is started by what is around it, which has been checked as a whole.
            "--no-sign-kernel".to_owned(),
            "--signtool=sbsign".into(),
            format!("--secureboot-private-key={}", inside(SECURE_BOOT_KEY)),
            format!("--secureboot-certificate={}", inside(SECURE_BOOT_CERTIFICATE)),
        ];
        if self.measures {
            args.extend([
                format!("--pcr-private-key={}", inside(MEASURE_KEY)),
                format!("--pcr-public-key={}", inside(MEASURE_PUBLIC)),
                "--pcr-banks=sha256".into(),
                format!("--tools={}", without_phases(tools)?),
            ]);
        }
        Ok(args)
    }

    /// Signs a program for firmware, in its place.
    pub(super) fn sign(&self, tools: &Tools, program: &Path) -> Result<()> {
        let program = tools.inside(program)?;
        let (key, certificate) = (inside(SECURE_BOOT_KEY), inside(SECURE_BOOT_CERTIFICATE));
        tools.output(&["sbsign", "--key", &key, "--cert", &certificate, "--output", &program, &program])?;
        Ok(())
    }

    /// Writes what a firmware in set-up mode takes, for the boot loader to hand it over.
    pub(super) fn enrolment(&self, tools: &Tools, folder: &Path, epoch_s: u64) -> Result<()> {
        fs::create_dir_all(folder)?;
        let (key, certificate) = (inside(SECURE_BOOT_KEY), inside(SECURE_BOOT_CERTIFICATE));
        let [der, message, signed] = ["own.cer", "message", "signed"].map(|name| folder.join(name));
        let [der_in, message_in, signed_in] = [&der, &message, &signed].map(|path| tools.inside(path));
        let (message_in, signed_in) = (message_in?, signed_in?);
        tools.output(&["openssl", "x509", "-in", &certificate, "-outform", "DER", "-out", &der_in?])?;
        let list = efi::list(&fs::read(&der)?);
        let time = efi::time(&tools.output(&["date", "-u", "-d", &format!("@{epoch_s}"), "+%Y %m %d %H %M %S"])?)?;
        for variable in &efi::VARIABLES {
            fs::write(&message, efi::message(variable, &time, &list))?;
            tools.output(&[
                "openssl",
                "smime",
                "-sign",
                "-binary",
                "-noattr",
                "-md",
                "sha256",
                "-outform",
                "DER",
                "-signer",
                &certificate,
                "-inkey",
                &key,
                "-in",
                &message_in,
                "-out",
                &signed_in,
            ])?;
            let content = efi::authenticated(&time, &fs::read(&signed)?, &list)?;
            fs::write(folder.join(format!("{}.auth", variable.name)), content)?;
        }
        for path in [der, message, signed] {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

fn inside(name: &str) -> String {
    format!("{KEYS_INSIDE}/{name}")
}

/// A folder whose `systemd-measure` signs one state: the kernel image as it was started, before the system on top of it says
/// how far it has come. The appliance says no such thing.
fn without_phases(tools: &Tools) -> Result<String> {
    const PROGRAM: &str = "#!/bin/sh\nexec /usr/lib/systemd/systemd-measure \"$@\" --phase=\n";
    let folder = tools.work().join("measure");
    fs::create_dir_all(&folder)?;
    let program = folder.join("systemd-measure");
    fs::write(&program, PROGRAM)?;
    run::output(run::command("chmod", [Path::new("755"), &program]))?;
    tools.inside(&folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_to_have_the_keys() {
        let folder = std::env::temp_dir().join(format!("xtask-keys-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        assert!(Keys::open(&folder).is_err_and(|why| why.to_string().contains("has no secure-boot.key")));
        for name in [SECURE_BOOT_KEY, SECURE_BOOT_CERTIFICATE] {
            fs::write(folder.join(name), "").unwrap();
        }
        assert!(!Keys::open(&folder).unwrap().measures);
        fs::write(folder.join(MEASURE_KEY), "").unwrap();
        assert!(Keys::open(&folder).is_err_and(|why| why.to_string().contains("and not the other")));
        fs::write(folder.join(MEASURE_PUBLIC), "").unwrap();
        assert!(Keys::open(&folder).unwrap().measures);
        fs::remove_dir_all(folder).unwrap();
    }
}
