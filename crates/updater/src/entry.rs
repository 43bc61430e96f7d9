//! Names of boot entries on the ESP: `skerry_<version>+<tries left>-<tries done>.efi`, and which of two versions the boot
//! loader takes first.
//!
//! Lives here: reading and writing names, the order of versions (UAPI version format specification). Not here: renaming
//! (updater.rs), a model of the boot loader (the tests).

use std::cmp::Ordering;

const PREFIX: &str = "skerry_";
const SUFFIX: &str = ".efi";
/// What a kernel image is called that is not bootable yet. No boot loader looks at such names.
const STAGED: &str = ".staged";

/// A boot entry, by its file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub version: String,
    /// Nothing once the entry is known to be good.
    pub tries: Option<Tries>,
}

/// How often an entry may still be tried, and how often it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tries {
    pub left: u32,
    pub done: u32,
}

impl Entry {
    /// Of a file's name; nothing if it is not one of ours.
    pub fn parse(name: &str) -> Option<Self> {
        let stem = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        let (version, tries) = match stem.rsplit_once('+') {
            Some((version, counters)) => (version, Some(Tries::parse(counters)?)),
            None => (stem, None),
        };
        (!version.is_empty()).then(|| Self { version: version.to_owned(), tries })
    }

    pub fn name(&self) -> String {
        let tries = match self.tries {
            None => String::new(),
            Some(Tries { left, done: 0 }) => format!("+{left}"),
            Some(Tries { left, done }) => format!("+{left}-{done}"),
        };
        format!("{PREFIX}{}{tries}{SUFFIX}", self.version)
    }

    /// Whether the boot loader takes it only if there is nothing better.
    pub fn is_bad(&self) -> bool {
        self.tries.is_some_and(|tries| tries.left == 0)
    }
}

impl Tries {
    fn parse(counters: &str) -> Option<Self> {
        let number = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
        let (left, done) = counters.split_once('-').unwrap_or((counters, "0"));
        Some(Self { left: number(left)?, done: number(done)? })
    }
}

/// The name of a kernel image that waits to be armed.
pub fn staged(version: &str) -> String {
    format!("{PREFIX}{version}{STAGED}")
}

/// The version of a kernel image that waits to be armed.
pub fn staged_version(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)?.strip_suffix(STAGED)
}

/// The order in which boot loaders sort versions: `1.10` is above `1.9`, `2.0~rc1` below `2.0`.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (Rest(a.as_bytes()), Rest(b.as_bytes()));
    loop {
        a.skip_others();
        b.skip_others();
        // Whoever has the separator stands lower, the end of the text being above `~` and below all others.
        for separator in *b"~\0-^." {
            if separator == 0 {
                if a.0.is_empty() || b.0.is_empty() {
                    return a.0.len().cmp(&b.0.len());
                }
                continue;
            }
            match (a.take(separator), b.take(separator)) {
                (true, false) => return Ordering::Less,
                (false, true) => return Ordering::Greater,
                _ => {}
            }
        }
        let order = if a.starts(u8::is_ascii_digit) || b.starts(u8::is_ascii_digit) {
            a.number().cmp(&b.number())
        } else {
            a.word().cmp(b.word())
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// What of a version is still to be compared.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn starts(&self, is: impl Fn(&u8) -> bool) -> bool {
        self.0.first().is_some_and(is)
    }

    fn skip_others(&mut self) {
        let counts = |byte: &u8| byte.is_ascii_alphanumeric() || b"~-^.".contains(byte);
        let skip = self.0.iter().position(counts).unwrap_or(self.0.len());
        self.0 = self.0.get(skip..).unwrap_or_default();
    }

    fn take(&mut self, byte: u8) -> bool {
        let rest = self.0.strip_prefix(&[byte]);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn run(&mut self, is: impl Fn(&u8) -> bool) -> &'a [u8] {
        let len = self.0.iter().position(|byte| !is(byte)).unwrap_or(self.0.len());
        let (run, rest) = self.0.split_at(len);
        self.0 = rest;
        run
    }

    /// Digits, so that longer ones are larger; none is less than zero.
    fn number(&mut self) -> Option<(usize, &'a [u8])> {
        let digits = self.run(u8::is_ascii_digit);
        let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
        let counts = digits.get(zeros..).unwrap_or_default();
        (!digits.is_empty()).then_some((counts.len(), counts))
    }

    fn word(&mut self) -> &'a [u8] {
        self.run(u8::is_ascii_alphabetic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        let check = |name: &str, version: &str, tries: Option<(u32, u32)>| {
            let entry = Entry::parse(name).unwrap();
            let tries = tries.map(|(left, done)| Tries { left, done });
            assert_eq!(entry, Entry { version: version.to_owned(), tries }, "{name}");
            assert_eq!(entry.name(), name);
        };
        check("skerry_1.4.0.efi", "1.4.0", None);
        check("skerry_1.4.0+3.efi", "1.4.0", Some((3, 0)));
        check("skerry_1.4.0+2-1.efi", "1.4.0", Some((2, 1)));
        check("skerry_1.4.0-rc.1+0-3.efi", "1.4.0-rc.1", Some((0, 3)));
        for other in [
            "skerry_.efi",
            "skerry_1+.efi",
            "skerry_1+x.efi",
            "skerry_1+1-.efi",
            "skerry_1.staged",
            "other_1.efi",
            "skerry_1+-1.efi",
        ] {
            assert_eq!(Entry::parse(other), None, "{other}");
        }
        assert_eq!(staged_version(&staged("1.4.0")), Some("1.4.0"));
        assert_eq!(Entry::parse(&staged("1.4.0")), None);
    }

    #[test]
    fn versions_have_the_order_of_the_specification() {
        // Each above the one before it.
        let rising = [
            "~", "", "0", "0.9", "1~rc1", "1~rc2", "1", "1-1", "1^git1", "1.0", "1.2", "1.2a", "1.9", "1.10", "1.10.1",
            "2.0~1", "2.0", "10",
        ];
        for (low, high) in rising.iter().zip(rising.iter().skip(1)) {
            assert_eq!(compare_versions(low, high), Ordering::Less, "{low} {high}");
            assert_eq!(compare_versions(high, low), Ordering::Greater, "{high} {low}");
        }
        for (one, other) in [("1.2", "1.2"), ("1.02", "1.2"), ("1_2", "12"), ("", "_")] {
            let expected = if one == "1_2" { Ordering::Less } else { Ordering::Equal };
            assert_eq!(compare_versions(one, other), expected, "{one} {other}");
        }
    }
}
