//! The server's signing key: one line in one file, in the form that other homeservers use too
//! (`ed25519 <version> <seed in base64>`), so that a site can bring its key along.

use std::fs;
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ruma::signatures::Ed25519KeyPair;

use crate::StartError;
use crate::dirs;
use crate::rng::Rng;

/// A key as it stands in the file.
pub struct KeyFile {
    version: String,
    seed: [u8; 32],
}

/// Everything of a PKCS#8 document for an Ed25519 key that comes before the 32 bytes of the seed.
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

pub fn generate(rng: &Rng) -> Result<KeyFile, StartError> {
    Ok(KeyFile { version: format!("a_{}", rng.alphanumeric(6)), seed: rng.bytes() })
}

/// Reads the key, or makes one where there is none. A file that cannot be understood is never replaced.
pub fn load_or_create(path: &Path, rng: &Rng) -> Result<KeyFile, StartError> {
    let at = |cause| StartError::File { what: format!("signing key {}", path.display()), cause };
    match fs::read_to_string(path) {
        Ok(text) => KeyFile::parse(&text).ok_or_else(|| at(io::Error::other("is not `ed25519 <version> <seed>`"))),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            let key = generate(rng)?;
            // Readable by the owner only.
            dirs::replace(path, key.to_line().as_bytes(), 0o600).map_err(at)?;
            Ok(key)
        }
        Err(cause) => Err(at(cause)),
    }
}

impl KeyFile {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let (algorithm, version, seed) = (words.next()?, words.next()?, words.next()?);
        let seed = STANDARD_NO_PAD.decode(seed.trim_end_matches('=')).ok()?;
        let fits = algorithm == "ed25519" && words.next().is_none();
        fits.then_some(Self { version: version.to_owned(), seed: seed.try_into().ok()? })
    }

    fn to_line(&self) -> String {
        format!("ed25519 {} {}\n", self.version, STANDARD_NO_PAD.encode(self.seed))
    }

    pub fn key_pair(&self) -> Result<Ed25519KeyPair, StartError> {
        let document = [&PKCS8_HEAD[..], &self.seed].concat();
        Ed25519KeyPair::from_der(&document, self.version.clone())
            .map_err(|cause| StartError::Other(format!("the signing key is unusable: {cause}")))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_read_ever_after() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("signing.key");
        let made = load_or_create(&path, &Rng::system()).unwrap().key_pair().unwrap();
        let read = load_or_create(&path, &Rng::system()).unwrap().key_pair().unwrap();
        assert_eq!(made.public_key(), read.public_key());
        assert_eq!(made.version(), read.version());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    /// The first test key of RFC 8032.
    #[test]
    fn a_known_seed_gives_its_public_key() {
        let seed = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";
        let key = KeyFile::parse(&format!("ed25519 a_x {seed}=\n")).unwrap().key_pair().unwrap();
        let public = STANDARD_NO_PAD.encode(key.public_key());
        assert_eq!(public, "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo");
    }

    #[test]
    fn a_broken_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("signing.key");
        for broken in ["", "ed25519 a_x", "rsa a_x AAAA", "ed25519 a_x AAAA", "ed25519 a_x !!!"] {
            fs::write(&path, broken).unwrap();
            assert!(load_or_create(&path, &Rng::system()).is_err(), "{broken}");
            assert_eq!(fs::read_to_string(&path).unwrap(), broken);
        }
    }
}
