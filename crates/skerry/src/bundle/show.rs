//! What people are shown of keys, roots and bundles.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Read, Seek, Write as _};

use bundle::{Checked, Manifest, PublicKey, Report, Root};
use serde_json::{Value, json};

pub(super) fn key(key: &PublicKey) -> String {
    format!("key     {}\npublic  {key}\n", key.id())
}

pub(super) fn root(root: &Root) -> String {
    let mut text = format!("root document {}\n", root.version);
    for (what, role) in [("the next root", &root.root), ("releases", &root.release)] {
        let keys: Vec<String> = role.keys.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "  {what}: {} of {} keys ({})", role.threshold, keys.len(), keys.join(", "));
    }
    for key in &root.revoked {
        let _ = writeln!(text, "  revoked: {key}");
    }
    text
}

pub(super) fn manifest(manifest: &Manifest) -> String {
    let mut text = format!("release           {}\n", manifest.version);
    let _ = writeln!(text, "security version  {} (from {})", manifest.security_version, manifest.from_security_version);
    let _ = writeln!(text, "made              {}", day(manifest.built_s));
    let _ = writeln!(text, "database formats  {} to {}", manifest.store.oldest, manifest.store.newest);
    for (arch, image) in &manifest.images {
        let _ = writeln!(text, "image for {arch}");
        for (name, part) in image.parts() {
            let _ = writeln!(text, "  {:<7} {:>12} bytes  sha256 {}", name.to_string(), part.bytes, part.sha256);
        }
    }
    for line in manifest.notes.lines() {
        let _ = writeln!(text, "  | {line}");
    }
    text
}

pub(super) fn verified<R: Read + Seek>(bundle: &Checked<R>, report: &Report) -> String {
    let mut text = String::from("GOOD\n") + &manifest(bundle.manifest());
    let signers: Vec<String> = bundle.signers().iter().map(ToString::to_string).collect();
    let _ = writeln!(text, "signed by         {}", signers.join(", "));
    if let Some(trust) = bundle.trust() {
        let _ = writeln!(text, "judged by         root document {}", trust.root().version);
    }
    let _ = writeln!(
        text,
        "bill of materials {} bytes  sha256 {}",
        bundle.manifest().sbom.bytes,
        bundle.manifest().sbom.sha256
    );
    let _ = writeln!(
        text,
        "checked           {} chunks, {} bytes packed, {} plain",
        report.chunks, report.stored, report.plain
    );
    for arch in left_out(bundle) {
        let _ = writeln!(text, "left out          the image for {arch}");
    }
    if report.elsewhere > 0 {
        let _ = writeln!(
            text,
            "thin              {} chunks must be on the box already: only for boxes that run the release it was made from",
            report.elsewhere
        );
    }
    text
}

pub(super) fn json<R: Read + Seek>(bundle: &Checked<R>, report: &Report) -> Value {
    let texts = |keys: &[bundle::KeyId]| keys.iter().map(ToString::to_string).collect::<Vec<_>>();
    json!({
        "good": true,
        "manifest": bundle.manifest(),
        "signers": texts(bundle.signers()),
        "root_version": bundle.trust().map(|trust| trust.root().version),
        "left_out": left_out(bundle),
        "chunks": report.chunks,
        "stored_bytes": report.stored,
        "plain_bytes": report.plain,
        "chunks_elsewhere": report.elsewhere,
    })
}

fn left_out<R: Read + Seek>(bundle: &Checked<R>) -> Vec<String> {
    bundle.manifest().images.keys().filter(|arch| bundle.image(**arch).is_err()).map(ToString::to_string).collect()
}

/// A moment to the minute (UTC).
pub(crate) fn moment(seconds: u64) -> String {
    let (hour, minute) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{} {hour:02}:{minute:02}", day(seconds.max(1)))
}

/// The day of a moment, as people write it (UTC).
fn day(seconds: u64) -> String {
    if seconds == 0 {
        return "not said".into();
    }
    // Civil date from days since 1970, counted in years that begin in March.
    let days = seconds / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// A bar on a terminal, nothing elsewhere.
pub(super) struct Progress {
    whole: u64,
    shown: u64,
    on: bool,
}

impl Progress {
    pub(super) fn new(whole: u64) -> Self {
        Self { whole: whole.max(1), shown: u64::MAX, on: std::io::stderr().is_terminal() }
    }

    pub(super) fn reached(&mut self, bytes: u64) {
        let percent = (bytes.min(self.whole) * 100) / self.whole;
        if self.on && percent != self.shown {
            self.shown = percent;
            let _ = write!(std::io::stderr(), "\rchecking {percent:>3} %");
        }
    }

    pub(super) fn end(&self) {
        if self.on {
            let _ = write!(std::io::stderr(), "\r              \r");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::day;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "not said"),
            (1, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_790_000_000, "2026-09-21"),
            (4_102_444_799, "2099-12-31"),
        ] {
            assert_eq!(day(seconds), expected);
        }
    }
}
