//! Tokens that say where in the stream a client is. The only place that writes or reads them.
//!
//! - `s<version>_<boot>.<serial>`, with a `t` at the end while somebody is typing: the `since` and `next_batch` of
//!   sync. `version` is the store's version that the client has seen everything up to. What is not stored (typing,
//!   presence) is counted by `serial`; it begins anew with each start of the server, which `boot` tells apart. A `d`
//!   and a position follow where more messages wait for the device than one answer holds: it has those up to there.
//! - `t<position>`: a place between two events of a timeline (`prev_batch`, and `start` and `end` of `/messages`).
//!   Reading backward from it yields events at or before the position, reading forward the events after it.
//! - `c<version>_<boot>.<number>`: the `pos` of a connection (sliding sync). `number` finds what the client was told,
//!   which is kept in memory only.
//!
//! Wherever a timeline token is taken, a sync token is taken too: it stands after everything its client has seen.

use std::fmt;
use std::str::FromStr;

use store::Pos;

use crate::error::{Error, Result};

/// How far a client has seen what is not stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ephemeral {
    /// Which start of the server `serial` belongs to.
    pub boot: u32,
    pub serial: u64,
    /// The client was told of somebody who is typing: after a restart it has to be told that nobody is.
    pub typing: bool,
}

/// Where a client's sync is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncToken {
    pub version: Pos,
    pub ephemeral: Ephemeral,
    /// How far the device has its messages, if not up to `version`.
    pub to_device: Option<Pos>,
}

impl SyncToken {
    /// The device has its messages up to here.
    pub fn messages(self) -> Pos {
        self.to_device.unwrap_or(self.version)
    }
}

impl fmt::Display for SyncToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ephemeral { boot, serial, typing } = self.ephemeral;
        write!(f, "s{}_{boot:08x}.{serial}{}", self.version, if typing { "t" } else { "" })?;
        match self.to_device {
            Some(at) => write!(f, "d{at}"),
            None => Ok(()),
        }
    }
}

impl FromStr for SyncToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_sync(text).ok_or_else(unknown)
    }
}

/// Where a client's connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionToken {
    pub version: Pos,
    pub boot: u32,
    pub number: u64,
}

impl fmt::Display for ConnectionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}_{:08x}.{}", self.version, self.boot, self.number)
    }
}

impl FromStr for ConnectionToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.strip_prefix('c').and_then(parse_counted);
        let (version, boot, number) =
            parsed.and_then(|(v, b, n)| Some((v, b, self::number(n)?))).ok_or_else(unknown)?;
        Ok(ConnectionToken { version, boot, number })
    }
}

/// The token of a place in a timeline.
pub fn position(at: Pos) -> String {
    format!("t{at}")
}

/// The place that a token of either kind stands for.
pub fn parse_position(text: &str) -> Result<Pos> {
    let place = match text.as_bytes().first() {
        Some(b't') => text.strip_prefix('t').and_then(number).map(Pos),
        Some(b'c') => text.parse::<ConnectionToken>().ok().map(|token| token.version),
        _ => parse_sync(text).map(|token| token.version),
    };
    place.filter(|at| *at <= Pos::MAX).ok_or_else(unknown)
}

fn unknown() -> Error {
    Error::invalid_param("This is no token of this server")
}

fn parse_sync(text: &str) -> Option<SyncToken> {
    let (version, boot, serial) = parse_counted(text.strip_prefix('s')?)?;
    let (serial, to_device) = match serial.split_once('d') {
        Some((serial, at)) => (serial, Some(number(at).map(Pos)?)),
        None => (serial, None),
    };
    let (serial, typing) = match serial.strip_suffix('t') {
        Some(serial) => (serial, true),
        None => (serial, false),
    };
    if to_device.is_some_and(|at| at > version) {
        return None;
    }
    Some(SyncToken { version, ephemeral: Ephemeral { boot, serial: number(serial)?, typing }, to_device })
}

/// A version, a start of the server, and the rest.
fn parse_counted(text: &str) -> Option<(Pos, u32, &str)> {
    let (version, rest) = text.split_once('_')?;
    let (boot, rest) = rest.split_once('.')?;
    if boot.len() != 8 || !boot.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let boot = u32::from_str_radix(boot, 16).ok()?;
    let version = number(version).map(Pos).filter(|version| *version <= Pos::MAX)?;
    Some((version, boot, rest))
}

/// Digits only: the standard library would take a sign, too.
fn number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pitfall_020_tokens_come_back_as_they_were(version in 0..=Pos::MAX.0, boot: u32, serial: u64, typing: bool, left: Option<u64>) {
            let to_device = left.map(|left| Pos(version.saturating_sub(left)));
            let token = SyncToken { version: Pos(version), ephemeral: Ephemeral { boot, serial, typing }, to_device };
            prop_assert_eq!(token.to_string().parse::<SyncToken>().unwrap(), token);
            prop_assert_eq!(parse_position(&token.to_string()).unwrap(), token.version);
            prop_assert_eq!(parse_position(&position(token.version)).unwrap(), token.version);
        }

        #[test]
        fn pitfall_040_positions_of_connections_come_back_as_they_were(version in 0..=Pos::MAX.0, boot: u32, number: u64) {
            let token = ConnectionToken { version: Pos(version), boot, number };
            prop_assert_eq!(token.to_string().parse::<ConnectionToken>().unwrap(), token);
            prop_assert_eq!(parse_position(&token.to_string()).unwrap(), token.version);
            prop_assert!(token.to_string().parse::<SyncToken>().is_err());
        }

        #[test]
        fn any_text_is_a_token_or_a_400(text: String) {
            if let Ok(token) = text.parse::<SyncToken>() {
                prop_assert_eq!(parse_position(&text).unwrap(), token.version);
            }
        }
    }

    #[test]
    fn garbled_tokens_are_refused() {
        for text in [
            "",
            "s",
            "t",
            "s1",
            "s1_",
            "s1_00000000",
            "s1_00000000.",
            "s+1_00000000.1",
            "s1_0000000.1",
            "s1_+0000000.1",
            "s1_0000000G.1",
            "s1_00000000.1x",
            "s99999999999999999999_00000000.1",
            "s18446744073709551615_00000000.1",
            "t-1",
            "t1 ",
            "12",
            "s1_00000000.1_2",
            "s1_00000000.1d",
            "s1_00000000.1d2",
            "s1_00000000.1d1t",
        ] {
            assert!(text.parse::<SyncToken>().is_err(), "{text}");
            let error = parse_position(text).unwrap_err();
            assert_eq!(error.status(), 400);
        }
    }
}
