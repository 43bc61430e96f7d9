//! The archive that a kernel takes as its initial file system: `newc`, written the same way each time.
//!
//! Lives here: the format. Not here: what is in it (kernel.rs).

/// Kinds of files, as `stat` has them.
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTERS: u32 = 0o020_000;

/// An archive that grows.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub(super) fn folder(&mut self, path: &str) {
        self.entry(path, FOLDER | 0o755, (0, 0), &[]);
    }

    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, FILE | mode, (0, 0), content);
    }

    /// A device of characters.
    pub(super) fn device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.entry(path, CHARACTERS | mode, (major, minor), &[]);
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.entries = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        // Inode, mode, owner, group, links, time, size, place of it (2), device (2), name's size, checksum.
        let numbers =
            [self.entries, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, device.0, device.1, path.len() as u32 + 1, 0];
        self.bytes.extend(b"070701");
        for number in numbers {
            self.bytes.extend(format!("{number:08X}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, device and content.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// Reads an archive by the kernel's rules.
    fn read(bytes: &[u8]) -> Vec<Entry> {
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(at % 4, 0, "an entry begins at a multiple of four");
            assert_eq!(&bytes[at..at + 6], b"070701");
            let number = |n: usize| {
                let digits = std::str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (size, name) = (number(6) as usize, number(11) as usize);
            let content = (at + 110 + name).next_multiple_of(4);
            let name = String::from_utf8(bytes[at + 110..at + 110 + name - 1].to_vec()).unwrap();
            if name == "TRAILER!!!" {
                return found;
            }
            let device = (number(9), number(10));
            found.push((name, number(1), device, bytes[content..content + size].to_vec()));
            at = (content + size).next_multiple_of(4);
        }
    }

    #[test]
    fn what_is_put_in_is_read_again() {
        let mut archive = Archive::default();
        archive.folder("dev");
        archive.device("dev/console", 0o600, 5, 1);
        archive.file("init", 0o755, b"12345");
        archive.file("modules/odd.ko", 0o644, b"");
        let expected = [
            ("dev", 0o040_755, (0, 0), &b""[..]),
            ("dev/console", 0o020_600, (5, 1), b""),
            ("init", 0o100_755, (0, 0), b"12345"),
            ("modules/odd.ko", 0o100_644, (0, 0), b""),
        ];
        let found = read(&archive.end());
        let found: Vec<_> = found.iter().map(|(n, mode, device, c)| (n.as_str(), *mode, *device, &c[..])).collect();
        assert_eq!(found, expected);
    }
}
