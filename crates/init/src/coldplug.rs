//! Drivers for the devices that are there: the kernel says of each device what would fit it (`MODALIAS`), and the image says
//! which module fits what (`/modules.alias`). A machine loads its own controllers' drivers and no others.
//!
//! Lives here: the table, patterns, and which devices there are. Not here: modules that every machine needs (modules.rs),
//! and devices that are found after the root is there (udev's).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A driver: the files of its module behind those of what it needs, and the devices it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver<'t> {
    pub files: Vec<&'t str>,
    patterns: Vec<&'t str>,
}

/// Reads the table: a line with files begins with a slash; the lines behind it are the patterns of its devices.
#[must_use]
pub fn table(text: &str) -> Vec<Driver<'_>> {
    let mut drivers: Vec<Driver<'_>> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with('/') {
            drivers.push(Driver { files: line.split_whitespace().collect(), patterns: Vec::new() });
        } else if let Some(driver) = drivers.last_mut() {
            driver.patterns.push(line);
        }
    }
    drivers
}

impl Driver<'_> {
    /// Whether one of the devices is one of its own.
    #[must_use]
    pub fn fits(&self, devices: &BTreeSet<String>) -> bool {
        devices.iter().any(|device| self.patterns.iter().any(|pattern| matches(device.as_bytes(), pattern.as_bytes())))
    }
}

/// What the kernel says of the devices on all of its buses.
#[must_use]
pub fn devices(sys: &Path) -> BTreeSet<String> {
    let inside = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let devices = inside(&sys.join("bus")).flat_map(|bus| inside(&bus.join("devices")).collect::<Vec<_>>());
    devices.filter_map(|device| alias(&fs::read_to_string(device.join("uevent")).ok()?)).collect()
}

fn alias(event: &str) -> Option<String> {
    event.lines().find_map(|line| line.strip_prefix("MODALIAS=")).map(str::to_owned)
}

/// Whether a name is like a pattern with `*` for anything, `?` for one character, and `[…]` for one of some.
fn matches(name: &[u8], pattern: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, rest) => rest.is_none(),
        (Some((b'*', [])), _) => true,
        (Some((b'*', behind)), _) => (0..=name.len()).any(|at| matches(name.get(at..).unwrap_or_default(), behind)),
        (Some(_), None) => false,
        (Some((b'?', behind)), Some((_, rest))) => matches(rest, behind),
        (Some((b'[', set)), Some((one, rest))) => match set.iter().position(|byte| *byte == b']') {
            Some(end) => {
                let (set, behind) = set.split_at(end);
                is_one_of(*one, set) && matches(rest, behind.get(1..).unwrap_or_default())
            }
            None => false,
        },
        (Some((own, behind)), Some((one, rest))) => own == one && matches(rest, behind),
    }
}

/// Whether it is in a set such as `0-9a`.
fn is_one_of(one: u8, set: &[u8]) -> bool {
    match set {
        [from, b'-', to, rest @ ..] => (*from..=*to).contains(&one) || is_one_of(one, rest),
        [own, rest @ ..] => *own == one || is_one_of(one, rest),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "/m/virtio_blk.ko\n virtio:d00000002v*\n/m/raid_class.ko.xz /m/mpt3sas.ko.xz\n \
                         pci:v00001000d00000097sv*sd*bc*sc*i*\npci:v00001000d000000[9A]?sv*\n";

    fn check(name: &str, pattern: &str, expected: bool) {
        assert_eq!(matches(name.as_bytes(), pattern.as_bytes()), expected, "{name} {pattern}");
    }

    #[test]
    fn patterns_are_the_kernels() {
        check("virtio:d00000002v00001AF4", "virtio:d00000002v*", true);
        check("virtio:d00000001v00001AF4", "virtio:d00000002v*", false);
        check("usb:v05ACp12", "usb:v05[0-9A-C]Cp1[23]", true);
        check("usb:v05DCp12", "usb:v05[0-9A-B]Cp1[23]", false);
        check("acpi:PNP0A03:PNP0A08:", "acpi*:PNP0A08:*", true);
        check("cpu:type:x86,ven0000:feature:,0001,0094,0096", "cpu:type:x86,ven*:feature:*0094*", true);
        check("a", "a?", false);
        check("ab", "a", false);
        check("a", "[a", false);
        check("", "*", true);
    }

    #[test]
    fn a_driver_is_for_its_devices() {
        let drivers = table(TABLE);
        let files: Vec<_> = drivers.iter().map(|driver| driver.files.join(" ")).collect();
        assert_eq!(files, ["/m/virtio_blk.ko", "/m/raid_class.ko.xz /m/mpt3sas.ko.xz"]);
        let fits = |name: &str| {
            let devices = BTreeSet::from(["serio:ty01".to_owned(), name.to_owned()]);
            drivers.iter().map(|driver| driver.fits(&devices)).collect::<Vec<_>>()
        };
        assert_eq!(fits("virtio:d00000002v00001AF4"), [true, false]);
        assert_eq!(fits("pci:v00001000d00000097sv1sd2bc01sc07i00"), [false, true]);
        assert_eq!(fits("pci:v00001000d000000ABsv1"), [false, true]);
        assert_eq!(fits("pci:v00001000d000000BBsv1"), [false, false]);
    }

    #[test]
    fn devices_are_on_buses() {
        let sys = tempfile::tempdir().unwrap();
        for (device, event) in
            [("pci/devices/0000:00:01.0", "DRIVER=x\nMODALIAS=pci:v1\n"), ("acpi/devices/A", "X=1\n"), ("usb/x", "")]
        {
            let folder = sys.path().join("bus").join(device);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("uevent"), event).unwrap();
        }
        assert_eq!(devices(sys.path()), BTreeSet::from(["pci:v1".to_owned()]));
        assert!(devices(Path::new("/nonexistent")).is_empty());
    }
}
