//! Partition tables: what is read, what is refused, and cuts while they are written.

use std::cell::RefCell;
use std::rc::Rc;

use proptest::prelude::*;

use super::media::{Cut, Image, Media, Power};
use super::world::World;
use crate::disk::{Disk, SECTOR};
use crate::gpt::{GptError, Guid, Table, crc32};

const ESP: u64 = 256 * 1024;

fn labels(table: &Table) -> Vec<String> {
    table.partitions().into_iter().map(|partition| partition.label).collect()
}

fn disk(bytes: Vec<u8>) -> Media {
    let (size, power) = (bytes.len() as u64, Rc::new(Power::default()));
    Media::new(&Rc::new(RefCell::new(Image::new(bytes))), &power, 0, size)
}

#[test]
fn checksums_and_guids_are_those_of_others() {
    assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    let text = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
    let guid = Guid::parse(text).unwrap();
    assert_eq!(guid.to_string(), text);
    assert_eq!(guid.to_disk()[..8], [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11]);
    for wrong in ["", "c12a7328", &text.replace('-', "+"), &text.replace('c', "g")] {
        assert_eq!(Guid::parse(wrong), None);
    }
}

#[test]
fn a_name_changes_one_entry_and_nothing_else() {
    let world = World::new(ESP);
    let mut table = Table::read(&world.disk).unwrap();
    let before = table.partitions();
    table.name(3, "skerry_1.2.0", Some(Guid([7; 16]))).unwrap();
    table.write(&world.disk).unwrap();
    let table = Table::read(&world.disk).unwrap();
    assert!(!table.needs_repair());
    for (old, new) in before.iter().zip(table.partitions()) {
        if old.index == 3 {
            assert_eq!((new.label.as_str(), new.id), ("skerry_1.2.0", Guid([7; 16])));
            assert_eq!((new.at, new.bytes, new.kind), (old.at, old.bytes, old.kind));
        } else {
            assert_eq!(*old, new);
        }
    }
    let mut table = table;
    assert!(matches!(table.name(9, "x", None), Err(GptError::NoPartition(9))));
    assert!(matches!(table.name(3, &"x".repeat(37), None), Err(GptError::Label(_))));
}

#[test]
fn one_good_copy_is_enough_and_mends_the_other() {
    let good = World::new(ESP).image.borrow().bytes();
    let last = good.len() as u64 / SECTOR - 1;
    for (what, at) in [("header", 1), ("entries", 2), ("backup header", last), ("backup entries", last - 32)] {
        let mut bytes = good.clone();
        bytes[(at * SECTOR) as usize + 20] ^= 1;
        let disk = disk(bytes);
        let mut table = Table::read(&disk).unwrap();
        assert!(table.needs_repair(), "{what}");
        assert_eq!(labels(&table)[0], "ESP");
        table.write(&disk).unwrap();
        assert!(!Table::read(&disk).unwrap().needs_repair(), "{what}");
        let mut all = vec![0; good.len()];
        disk.read_at(0, &mut all).unwrap();
        assert!(all == good, "{what}: mending makes what was there");
    }
    let mut bytes = good;
    bytes[SECTOR as usize] ^= 1;
    bytes[(last * SECTOR) as usize] ^= 1;
    assert!(matches!(Table::read(&disk(bytes)), Err(GptError::NoTable { .. })));
}

#[test]
fn a_cut_while_it_is_written_leaves_the_old_table_or_the_new_one() {
    for damaged in [None, Some(1), Some(World::new(ESP).disk.size().unwrap() / SECTOR - 1)] {
        for after in 0..20 {
            for cut in
                [Cut::Nothing, Cut::Everything, Cut::AllButTheFirst, Cut::OnlyTheLast, Cut::Some(1), Cut::Some(2)]
            {
                let mut world = World::new(ESP);
                if let Some(sector) = damaged {
                    world.disk.write_at(sector * SECTOR, &[0xff; 16]).unwrap();
                    world.disk.sync().unwrap();
                }
                let mut table = Table::read(&world.disk).unwrap();
                let old = labels(&table);
                table.name(3, "new", None).unwrap();
                let new = labels(&table);
                world.power.on(Some(after));
                let written = table.write(&world.disk).is_ok();
                world.cut(cut);
                let there = Table::read(&world.disk).unwrap();
                assert!(labels(&there) == new || (!written && labels(&there) == old), "{after} {cut:?}");
            }
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_stumble(places in proptest::collection::vec((0..40 * SECTOR, any::<u8>()), 1..40), fix in any::<bool>()) {
        let mut bytes = World::new(ESP).image.borrow().bytes();
        for (place, byte) in places {
            bytes[place as usize] = byte;
        }
        if fix {
            // A header that is damaged and says that it is not.
            bytes[528..532].fill(0);
            let sum = crc32(&bytes[512..604]);
            bytes[528..532].copy_from_slice(&sum.to_le_bytes());
        }
        if let Ok(table) = Table::read(&disk(bytes)) {
            table.partitions();
        }
    }
}
