//! What a firmware in set-up mode is given, so that it starts from then on only what a key has signed: variables that prove
//! whose they are (UEFI specification, 8.2.2 and 32.4.1).
//!
//! Lives here: the formats. Not here: the keys (keys.rs), who hands it over (the boot loader).

use anyhow::{Context, Result, bail};

/// One of firmware's lists of keys.
pub(super) struct Variable {
    pub(super) name: &'static str,
    /// Whose name it is: the bytes of a GUID.
    vendor: [u8; 16],
}

/// `EFI_GLOBAL_VARIABLE`.
const GLOBAL: [u8; 16] = *b"\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c";
/// `EFI_IMAGE_SECURITY_DATABASE_GUID`.
const SECURITY: [u8; 16] = *b"\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f";
/// `EFI_CERT_X509_GUID`.
const X509: [u8; 16] = *b"\xa1\x59\xc0\xa5\xe4\x94\xa7\x4a\x87\xb5\xab\x15\x5c\x2b\xf0\x72";
/// `EFI_CERT_TYPE_PKCS7_GUID`.
const PKCS7: [u8; 16] = *b"\x9d\xd2\xaf\x4a\xdf\x68\xee\x49\x8a\xa9\x34\x7d\x37\x56\x65\xa7";
/// Who owns the entries: 5c0e9f3a-6b0d-4a55-8f0e-736b65727279.
const OWNER: [u8; 16] = *b"\x3a\x9f\x0e\x5c\x0d\x6b\x55\x4a\x8f\x0eskerry";
/// Kept; seen by boot programs and by the system; written by whoever signs with a later time.
const ATTRIBUTES: u32 = 0x27;
/// The platform's owner, who may name those who may name what is started.
pub(super) const VARIABLES: [Variable; 3] = [
    Variable { name: "PK", vendor: GLOBAL },
    Variable { name: "KEK", vendor: GLOBAL },
    Variable { name: "db", vendor: SECURITY },
];

/// `EFI_TIME`.
pub(super) type Time = [u8; 16];

/// A list (`EFI_SIGNATURE_LIST`) of one certificate.
pub(super) fn list(certificate: &[u8]) -> Vec<u8> {
    const HEADER_BYTES: usize = 28;
    let entry = OWNER.len() + certificate.len();
    let sizes = [HEADER_BYTES + entry, 0, entry].map(|size| (size as u32).to_le_bytes());
    [&X509, sizes.as_flattened(), &OWNER, certificate].concat()
}

/// A time from six numbers: year, month, day, hour, minute, second.
pub(super) fn time(text: &str) -> Result<Time> {
    let numbers: Vec<u16> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [year, rest @ ..] = numbers.as_slice() else { bail!("no time: {text}") };
    let mut time = Time::default();
    let bytes = year.to_le_bytes().into_iter().chain(rest.iter().map(|number| *number as u8));
    time.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
    Ok(time)
}

/// What is signed.
pub(super) fn message(variable: &Variable, time: &Time, content: &[u8]) -> Vec<u8> {
    let name: Vec<u8> = variable.name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    [&name, &variable.vendor[..], &ATTRIBUTES.to_le_bytes(), time, content].concat()
}

/// What is handed over (`EFI_VARIABLE_AUTHENTICATION_2`): time, signature (as openssl makes it, of the message), content.
pub(super) fn authenticated(time: &Time, signature: &[u8], content: &[u8]) -> Result<Vec<u8>> {
    const HEADER_BYTES: usize = 24;
    let signature = bare(signature).context("a signature of another kind")?;
    let size = (HEADER_BYTES + signature.len()) as u32;
    // The structure's version, and its kind: WIN_CERT_TYPE_EFI_GUID.
    let kind = [0x00, 0x02, 0xf1, 0x0e];
    Ok([time, &size.to_le_bytes()[..], &kind, &PKCS7, signature, content].concat())
}

/// Firmware wants the signature without the wrapping (PKCS #7 `ContentInfo`) that says what it is.
fn bare(wrapped: &[u8]) -> Option<&[u8]> {
    const SIGNED_DATA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02";
    value(value(wrapped, 0x30)?.strip_prefix(SIGNED_DATA)?, 0xa0)
}

/// What is in a DER element whose length has two bytes.
fn value(bytes: &[u8], tag: u8) -> Option<&[u8]> {
    let [found, 0x82, high, low, rest @ ..] = bytes else { return None };
    (*found == tag && usize::from(u16::from_be_bytes([*high, *low])) == rest.len()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_its_sizes() {
        let list = list(b"CERT");
        assert_eq!(list[16..28], [48, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0]);
        assert_eq!(list.len(), 48);
        assert!(list.ends_with(b"skerryCERT"));
    }

    #[test]
    fn a_time_is_written_as_firmware_reads_it() {
        assert_eq!(time("2026 11 22 07 08 09\n").unwrap()[..8], [0xea, 0x07, 11, 22, 7, 8, 9, 0]);
        assert!(time("").is_err() && time("2026 x").is_err());
    }

    #[test]
    fn what_is_signed_begins_with_the_variable() {
        let [platform, _, allowed] = &VARIABLES;
        let time = Time::default();
        let message = message(allowed, &time, b"content");
        assert_eq!(message[..4], *b"d\0b\0");
        assert_eq!(message[4..24], [&SECURITY[..], &[0x27, 0, 0, 0]].concat());
        assert!(message.ends_with(b"\0content"));
        assert_eq!(super::message(platform, &time, b"")[4..20], GLOBAL);
    }

    #[test]
    fn the_wrapping_comes_off() {
        let signed = vec![7; 300];
        let inner = [&[0xa0, 0x82, 1, 44][..], &signed].concat();
        let oid = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02";
        let wrapped = [&[0x30, 0x82, 1, 59][..], oid, &inner].concat();
        let made = authenticated(&Time::default(), &wrapped, b"list").unwrap();
        assert_eq!(made[16..24], [0x44, 1, 0, 0, 0, 2, 0xf1, 0x0e]);
        assert_eq!(made[40..], [&signed[..], b"list"].concat());
        assert!(authenticated(&Time::default(), &wrapped[1..], b"list").is_err());
        assert!(authenticated(&Time::default(), &inner, b"list").is_err());
    }
}
