//! Sticks: a file with a partition table and one FAT32 partition, as sticks are sold.
//!
//! Lives here: making one from a folder. Not here: how it is plugged in (machine.rs).

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result};

use crate::run;

const MIB: u64 = 1 << 20;
const SECTOR_BYTES: u64 = 512;
const START: u64 = MIB / SECTOR_BYTES;
/// What is between the content and the end of the stick.
const ROOM_BYTES: u64 = 64 * MIB;

/// Makes a stick with the files of a folder.
pub(super) fn make(file: &Path, content: &Path) -> Result<()> {
    let mut bytes = ROOM_BYTES;
    let mut names = Vec::new();
    for entry in fs::read_dir(content).with_context(|| content.display().to_string())? {
        let entry = entry?;
        bytes += entry.metadata()?.len();
        names.push(entry.path());
    }
    names.sort();
    let sectors = bytes.next_multiple_of(MIB) / SECTOR_BYTES;
    let mut stick = File::create(file)?;
    stick.set_len((START + sectors) * SECTOR_BYTES)?;
    stick.write_all(&table(START as u32, sectors as u32))?;
    stick.seek(SeekFrom::Start(START * SECTOR_BYTES))?;
    drop(stick);
    let place = format!("{}@@1M", file.display());
    let sectors = sectors.to_string();
    run::output(run::command(
        "mformat",
        ["-i", &place, "-F", "-T", &sectors, "-h", "255", "-s", "63", "-v", "STICK", "::"],
    ))?;
    for name in names {
        let mut copy = run::command("mcopy", ["-s", "-i", &place]);
        copy.arg(&name).arg("::/");
        run::output(copy)?;
    }
    Ok(())
}

/// The first sector: one partition with FAT32.
fn table(start: u32, sectors: u32) -> [u8; 512] {
    let mut sector = [0; 512];
    // Not active; places by cylinder are past what they can say; FAT32 by block number.
    let entry =
        [&[0, 0xfe, 0xff, 0xff, 0x0c, 0xfe, 0xff, 0xff][..], &start.to_le_bytes(), &sectors.to_le_bytes()].concat();
    for (to, from) in sector.iter_mut().skip(446).zip(entry) {
        *to = from;
    }
    for (to, from) in sector.iter_mut().skip(510).zip([0x55, 0xaa]) {
        *to = from;
    }
    sector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stick_has_one_partition() {
        let sector = table(2048, 0x0102_0304);
        assert_eq!(sector[446 + 4], 0x0c);
        assert_eq!(sector[446 + 8..446 + 16], [0, 8, 0, 0, 4, 3, 2, 1]);
        assert!(sector[462..510].iter().all(|byte| *byte == 0));
        assert_eq!(sector[510..], [0x55, 0xaa]);
    }
}
