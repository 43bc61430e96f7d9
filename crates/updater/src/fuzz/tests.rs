//! Replays of what the fuzzer found worth keeping, and the inputs that it starts from.

use super::*;
use crate::testing::{ESP_KIND, ROOT_KIND, VERITY_KIND, partition};

#[path = "../../../../tests/fuzz/kept.rs"]
mod kept;

#[test]
fn what_was_kept_runs_again() {
    kept::replay(TARGET, run);
}

#[test]
fn good_inputs_are_where_the_fuzzer_starts() {
    let inputs: Vec<Vec<u8>> = [8, 20, 255].into_iter().flat_map(tables).collect();
    inputs.iter().for_each(|input| run(input));
    kept::offer(TARGET, &inputs);
}

#[test]
fn a_good_table_is_read_by_both() {
    let input = tables(40).remove(0);
    let (sectors, header) = (usize::from(input[1]), &input[2..2 + HEADER]);
    let mut bytes = vec![0; sectors * BLOCK];
    bytes[BLOCK..BLOCK + HEADER].copy_from_slice(header);
    bytes[2 * BLOCK..3 * BLOCK].copy_from_slice(&input[2 + 2 * HEADER..][..BLOCK]);
    make_right(&mut bytes, BLOCK);
    let disk = Memory(RefCell::new(bytes));
    let table = Table::read(&disk).unwrap();
    assert_eq!(table.partitions().len(), 3);
    the_same(&disk, &table);
}

/// Disks of that many sectors whose tables have four entries: whole, without a backup, without a primary, and cut short.
fn tables(sectors: u8) -> Vec<Vec<u8>> {
    let at = |sector: u64| sector * SECTOR;
    let entries = [
        partition(ESP_KIND, Guid([1; 16]), "ESP", at(3), at(1)),
        partition(ROOT_KIND, Guid([2; 16]), "skerry_1", at(4), at(1)),
        partition(VERITY_KIND, Guid([3; 16]), "_empty", at(5), at(1)),
        [0; 128],
    ]
    .concat();
    let last = u64::from(sectors) - 1;
    let header = |at: u64, other: u64, entries: u64| {
        let mut header = vec![0; HEADER];
        put(&mut header, 0, b"EFI PART\0\0\x01\0\x5c\0\0\0");
        for (place, number) in [(24, at), (32, other), (40, 3), (48, last - 2), (72, entries)] {
            put(&mut header, place, &number.to_le_bytes());
        }
        put(&mut header, 80, &4_u32.to_le_bytes());
        put(&mut header, 84, &128_u32.to_le_bytes());
        header
    };
    let (primary, backup) = (header(1, last, 2), header(last, 1, last - 1));
    let nothing = vec![0; HEADER];
    let of = |primary: &[u8], backup: &[u8]| [&[b's', sectors], primary, backup, &entries[..], &entries[..]].concat();
    let whole = of(&primary, &backup);
    let raw = [b"r", &whole[1..]].concat();
    vec![whole.clone(), of(&primary, &nothing), of(&nothing, &backup), whole[..300].to_vec(), raw]
}
