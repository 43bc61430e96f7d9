//! Certificates of the site's own authority.
//!
//! Lives here: what they say, and when the server's has to be made anew. Not here: where they are kept (files.rs).
//!
//! The authority can vouch for this server's names and for private addresses only: who steals its key cannot pretend to be
//! anybody else towards devices that trust it.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use ring::digest::{SHA256, digest};
use time::{Duration, OffsetDateTime};

/// Devices of some makers take no server's certificate that is good for more than 825 days.
const SERVER_DAYS: i64 = 800;
/// The clocks of devices may be behind the box's.
const BACK_DAYS: i64 = 20;
const AUTHORITY_DAYS: i64 = 30 * 365;
/// Renewed when so much is left.
const RENEW_DAYS: i64 = 200;

/// An authority with its key.
pub(crate) struct Authority {
    /// The names, with what is below them, that it vouches for; addresses, too.
    domains: Vec<String>,
    key: KeyPair,
}

/// What is written to files.
pub(crate) struct Issued {
    pub(crate) chain_pem: String,
    pub(crate) key_pem: String,
}

impl Authority {
    /// A new key.
    pub(crate) fn new(domains: &[String]) -> Result<Self> {
        Ok(Self { domains: domains.to_vec(), key: KeyPair::generate().context("no key can be made")? })
    }

    pub(crate) fn from_pem(domains: &[String], key_pem: &str) -> Result<Self> {
        let key = KeyPair::from_pem(key_pem).context("the authority's key cannot be read")?;
        Ok(Self { domains: domains.to_vec(), key })
    }

    pub(crate) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    fn first_domain(&self) -> &str {
        self.domains.first().map_or("localhost", String::as_str)
    }

    /// The authority's own certificate (PEM), made once.
    pub(crate) fn certificate(&self, now: OffsetDateTime) -> Result<String> {
        let mut params = self.params();
        params.not_before = now - Duration::days(BACK_DAYS);
        params.not_after = now + Duration::days(AUTHORITY_DAYS);
        Ok(params.self_signed(&self.key)?.pem())
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("Authority of {}", self.first_domain()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let permitted_subtrees = permitted(&self.domains);
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
        params
    }

    /// A certificate for these names and addresses, with a new key.
    pub(crate) fn issue(&self, names: &[String], now: OffsetDateTime) -> Result<Issued> {
        let mut params = CertificateParams::new(names.to_vec()).context("a name that no certificate can have")?;
        params.distinguished_name = named(self.first_domain());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = now - Duration::days(BACK_DAYS);
        params.not_after = now + Duration::days(SERVER_DAYS - BACK_DAYS);
        let key = KeyPair::generate().context("no key can be made")?;
        let certificate = params.signed_by(&key, &Issuer::from_params(&self.params(), &self.key))?;
        Ok(Issued { chain_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    // Longer ones are not allowed in there; the names that count stand elsewhere.
    distinguished.push(DnType::CommonName, name.chars().take(64).collect::<String>());
    distinguished
}

/// `localhost` is always there: without any name in this list, all names would be allowed.
fn permitted(domains: &[String]) -> Vec<GeneralSubtree> {
    const V4: [([u8; 4], u8); 6] = [
        ([10, 0, 0, 0], 8),
        ([172, 16, 0, 0], 12),
        ([192, 168, 0, 0], 16),
        ([169, 254, 0, 0], 16),
        ([100, 64, 0, 0], 10),
        ([127, 0, 0, 0], 8),
    ];
    const V6: [([u8; 2], u8); 2] = [([0xfc, 0], 7), ([0xfe, 0x80], 10)];
    let v4 = V4.iter().map(|(net, prefix)| CidrSubnet::from_v4_prefix(*net, *prefix));
    let v6 = V6.iter().map(|(begin, prefix)| {
        let mut net = [0; 16];
        net[..2].copy_from_slice(begin);
        CidrSubnet::from_v6_prefix(net, *prefix)
    });
    let own = domains.iter().map(|domain| match domain.parse::<IpAddr>() {
        Ok(address) => {
            GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(address, if address.is_ipv4() { 32 } else { 128 }))
        }
        Err(_) => GeneralSubtree::DnsName(domain.clone()),
    });
    let localhost = GeneralSubtree::DnsName("localhost".to_owned());
    v4.chain(v6).map(GeneralSubtree::IpAddress).chain(own).chain([localhost]).collect()
}

/// An address that the authority may vouch for whatever the server is called.
pub(crate) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            v4.is_private() || v4.is_link_local() || (first == 100 && second & 0xc0 == 64)
        }
        IpAddr::V6(v6) => v6.octets()[0] & 0xfe == 0xfc,
    }
}

/// What the server's certificate is for, kept beside it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Purpose {
    /// What the authority vouches for.
    pub(crate) domains: Vec<String>,
    pub(crate) names: Vec<String>,
    /// Seconds since 1970.
    pub(crate) issued: i64,
}

impl Purpose {
    /// Whether another certificate is due: names are missing, it ends soon, or the clock was set back to before it.
    pub(crate) fn is_over(&self, names: &[String], now: OffsetDateTime) -> bool {
        let age = now.unix_timestamp() - self.issued;
        let day = 24 * 3600;
        names.iter().any(|name| !self.names.contains(name))
            || age > (SERVER_DAYS - BACK_DAYS - RENEW_DAYS) * day
            || age < -BACK_DAYS * day
    }
}

/// The SHA-256 of the first certificate in a PEM file, as consoles and browsers show it.
pub(crate) fn fingerprint(pem: &str) -> Option<String> {
    let inside = pem.lines().skip_while(|line| !line.starts_with("-----BEGIN CERTIFICATE")).skip(1);
    let body: String = inside.take_while(|line| !line.starts_with("-----END")).map(str::trim).collect();
    let der = STANDARD.decode(body).ok().filter(|der| !der.is_empty())?;
    let bytes: Vec<String> = digest(&SHA256, &der).as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    Some(bytes.join(":"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    /// What a device that trusts the authority says to a server with this certificate, so many days later.
    fn accepted(authority: &Authority, issued: &Issued, name: &str, later_days: i64) -> bool {
        let pem = authority.certificate(now()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let server = CertificateDer::from_pem_slice(issued.chain_pem.as_bytes()).unwrap();
        let at = (now() + Duration::days(later_days)).unix_timestamp() as u64;
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(at));
        verifier.verify_server_cert(&server, &[], &ServerName::try_from(name.to_owned()).unwrap(), &[], at).is_ok()
    }

    #[test]
    fn devices_that_trust_the_authority_accept_the_server() {
        let authority = Authority::new(&names(&["matrix.site.example", "203.0.113.9"])).unwrap();
        let all = ["matrix.site.example", "localhost", "10.1.2.3", "203.0.113.9", "fd00::3", "127.0.0.1"];
        let issued = authority.issue(&names(&all), now()).unwrap();
        for name in all {
            assert!(accepted(&authority, &issued, name, 0), "{name}");
        }
        assert!(!accepted(&authority, &issued, "other.example", 0));
        assert!(accepted(&authority, &issued, all[0], -15), "a device whose clock is behind");
        assert!(accepted(&authority, &issued, all[0], 770));
        assert!(!accepted(&authority, &issued, all[0], 790));
    }

    #[test]
    fn the_authority_vouches_for_nobody_else() {
        let authority = Authority::new(&names(&["matrix.site.example"])).unwrap();
        for name in ["bank.example", "site.example", "203.0.113.9", "2001:db8::1"] {
            let issued = authority.issue(&names(&["matrix.site.example", name]), now()).unwrap();
            assert!(!accepted(&authority, &issued, name, 0), "{name}");
        }
        let only_addresses = Authority::new(&names(&["10.1.2.3"])).unwrap();
        let issued = only_addresses.issue(&names(&["bank.example"]), now()).unwrap();
        assert!(!accepted(&only_addresses, &issued, "bank.example", 0));
    }

    #[test]
    fn what_is_issued_later_by_the_same_key_is_accepted() {
        let first = Authority::new(&names(&["box"])).unwrap();
        let again = Authority::from_pem(&names(&["box"]), &first.key_pem()).unwrap();
        let issued = again.issue(&names(&["box"]), now() + Duration::days(600)).unwrap();
        assert!(accepted(&first, &issued, "box", 1300));
    }

    #[test]
    fn a_certificate_is_over_before_it_ends() {
        let purpose =
            Purpose { domains: names(&["box"]), names: names(&["box", "10.0.0.1"]), issued: now().unix_timestamp() };
        let over = |names_now: &[&str], days| purpose.is_over(&names(names_now), now() + Duration::days(days));
        assert!(!over(&["box"], 0) && !over(&["box"], 500) && !over(&["box"], -10));
        assert!(over(&["box", "10.0.0.2"], 0) && over(&["box"], 600) && over(&["box"], -30));
    }

    #[test]
    fn fingerprints_are_those_of_the_first_certificate() {
        let pem = Authority::new(&names(&["box"])).unwrap().certificate(now()).unwrap();
        let print = fingerprint(&pem).unwrap();
        assert_eq!(print.len(), 32 * 3 - 1);
        assert_eq!(fingerprint(&format!("remarks\n{pem}{pem}")), Some(print));
        assert_eq!(fingerprint("no"), None);
    }
}
