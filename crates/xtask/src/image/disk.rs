//! From a folder to a disk: the read-only file system and its hash tree, the partition for firmware, and the partition table.
//!
//! Lives here: layout, names and numbers of partitions. What is fixed here is fixed so that two builds give the same bytes.
//! Not here: what the file system holds (tree.rs), the slots' later life (the updater's).

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::packages::Packages;
use super::tools::Tools;
use super::tree::Root;
use super::{Arch, Recipe, kernel, recipe_file};

const MIB: u64 = 1 << 20;
const SECTOR_BYTES: u64 = 512;
const BLOCK_BYTES: &str = "4096";
const ESP_MIB: u64 = 512;
const ROOT_MIB: u64 = 512;
const VERITY_MIB: u64 = 16;
/// In front of the first partition, and behind the last for the second table.
const MARGIN_MIB: u64 = 1;
const ESP_UUID: &str = "5c0e9f3a-6b0d-4a55-8f0e-736b65727279";
const DISK_UUID: &str = "0d5a3d8e-4f0b-4c1c-9a70-736b65727279";
/// The empty slot's, until the first update names it by its root hash.
const EMPTY_UUIDS: [&str; 2] = ["b0f5a3f2-3f0b-4b8e-8a6d-736b65727230", "b0f5a3f2-3f0b-4b8e-8a6d-736b65727231"];
const ROOT_FS_UUID: &str = "6f1d9c54-8a39-4ad4-9d0c-736b65727279";
const VERITY_UUID: &str = "a9c3f0c8-2d0c-4a0f-9f3e-736b65727279";
/// Lies behind all other files: when it changes, and with it its length, the others keep their places. So an update of it
/// takes no other along.
const LAST: &str = "usr/bin/skerry";
/// In front of every block that is hashed. It does not change from release to release, so that what stays as it is keeps its
/// place in the tree, too: of a changed program, an update takes the changed hashes along and no others.
const VERITY_SALT: &str = "5b1f0c8e736b65727279a4d3e27796c08f1d4b6e2a95c37f10e8d9b2466a7c35";
const ESP_SERIAL: &str = "736B7279";
/// Tries that a new entry has.
const TRIES: u32 = 3;

const ESP_TYPE: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

/// Type numbers of a root and its hash tree (Discoverable Partitions Specification).
fn types(arch: Arch) -> [&'static str; 2] {
    match arch {
        Arch::X86_64 => ["4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"],
        Arch::Arm64 => ["b921b045-1df0-41c3-af44-4c6f280d3fae", "df3300ce-d69f-4c92-978c-9bfb0f38d820"],
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Partition {
    kind: &'static str,
    uuid: String,
    name: String,
    start: u64,
    bytes: u64,
}

/// Makes the file system and its hash tree; gives the root hash.
pub(super) fn seal(tools: &Tools, root: &Root, image: &Path, verity: &Path, epoch_s: u64) -> Result<String> {
    let (folder, image_in, verity_in) = (tools.inside(&root.folder)?, tools.inside(image)?, tools.inside(verity)?);
    for old in [image, verity] {
        let _ = fs::remove_file(old);
    }
    let time = format!("-T{epoch_s}");
    let uuid = format!("-U{ROOT_FS_UUID}");
    let files = image.with_extension("tar");
    let files_in = tools.inside(&files)?;
    let first = format!("--exclude=./{LAST}");
    let last = format!("./{LAST}");
    let tar = ["tar", "--format=gnu", "--sort=name", "-C", &folder];
    tools.output(&[&tar[..], &["-cf", &files_in, &first, "."]].concat())?;
    tools.output(&[&tar[..], &["-rf", &files_in, &last]].concat())?;
    // As the archive has them: contents in its order, then all that tells of files.
    let layout = ["-Enoinline_data", "--tar=f", "--sort=none"];
    let numbers = [&time, &uuid, "-Lskerry", "--all-root", "-x-1", "-b4096"];
    tools.step(
        "the root's file system",
        &[&["mkfs.erofs", "-d1"], &numbers[..], &layout, &[&image_in, &files_in]].concat(),
    )?;
    fs::remove_file(files)?;
    let text = tools.output(&[
        "veritysetup",
        "format",
        "--data-block-size",
        BLOCK_BYTES,
        "--hash-block-size",
        BLOCK_BYTES,
        "--salt",
        VERITY_SALT,
        "--uuid",
        VERITY_UUID,
        &image_in,
        &verity_in,
    ])?;
    let hash = text.lines().find_map(|line| line.strip_prefix("Root hash:")).context("no root hash")?.trim();
    if hash.len() != 64 {
        bail!("a root hash of {} digits", hash.len());
    }
    Ok(hash.to_owned())
}

/// Puts the partitions together.
pub(super) fn assemble(
    tools: &Tools,
    recipe: &Recipe,
    packages: &Packages,
    root_hash: &str,
    epoch_s: u64,
) -> Result<()> {
    let esp = esp(tools, recipe, packages, epoch_s)?;
    let partitions = layout(recipe.arch, &recipe.version, root_hash)?;
    let disk = recipe.disk();
    let file = File::create(&disk).with_context(|| disk.display().to_string())?;
    file.set_len(disk_bytes(&partitions))?;
    let table = recipe.folder().join("partitions.txt");
    fs::write(&table, script(&partitions))?;
    let line = format!("sfdisk -q --no-reread --no-tell-kernel {} < {}", tools.inside(&disk)?, tools.inside(&table)?);
    tools.step("the partition table", &["sh", "-c", &line])?;
    for (file, partition) in
        [(esp.clone(), 0), (recipe.payload().join("root.img"), 1), (recipe.payload().join("verity.img"), 2)]
    {
        let partition = partitions.get(partition).context("no partition")?;
        copy_sparse(&file, &disk, partition).with_context(|| file.display().to_string())?;
    }
    fs::remove_file(esp)?;
    Ok(fs::remove_file(table)?)
}

fn layout(arch: Arch, version: &str, root_hash: &str) -> Result<Vec<Partition>> {
    let [root, verity] = types(arch);
    let own = [uuid(root_hash, 0)?, uuid(root_hash, 32)?];
    let [own_root, own_verity] = own;
    let name = format!("skerry_{version}");
    let empty = EMPTY_UUIDS.map(str::to_owned);
    let [empty_root, empty_verity] = empty;
    let list = [
        (ESP_TYPE, ESP_UUID.to_owned(), "ESP".to_owned(), ESP_MIB),
        (root, own_root, name.clone(), ROOT_MIB),
        (verity, own_verity, format!("{name}_verity"), VERITY_MIB),
        (root, empty_root, "_empty".to_owned(), ROOT_MIB),
        (verity, empty_verity, "_empty".to_owned(), VERITY_MIB),
    ];
    let mut start = MARGIN_MIB * MIB;
    let place = |(kind, uuid, name, mib)| {
        let partition = Partition { kind, uuid, name, start, bytes: mib * MIB };
        start += mib * MIB;
        partition
    };
    Ok(list.into_iter().map(place).collect())
}

/// Sixteen bytes of the root hash, as a partition's number is written.
fn uuid(root_hash: &str, at: usize) -> Result<String> {
    let digits = root_hash.get(at..at + 32).context("the root hash is short")?;
    let part = |from, to| digits.get(from..to).unwrap_or_default();
    Ok(format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)))
}

fn disk_bytes(partitions: &[Partition]) -> u64 {
    partitions.last().map_or(0, |last| last.start + last.bytes) + MARGIN_MIB * MIB
}

/// The table, as `sfdisk` reads it.
fn script(partitions: &[Partition]) -> String {
    let mut text = format!("label: gpt\nlabel-id: {DISK_UUID}\nunit: sectors\n\n");
    for Partition { kind, uuid, name, start, bytes } in partitions {
        let (start, size) = (start / SECTOR_BYTES, bytes / SECTOR_BYTES);
        text.push_str(&format!("start={start}, size={size}, type={kind}, uuid={uuid}, name=\"{name}\"\n"));
    }
    text
}

/// The partition that firmware reads: boot loader, its settings, the kernel with its tries.
fn esp(tools: &Tools, recipe: &Recipe, packages: &Packages, epoch_s: u64) -> Result<PathBuf> {
    let folder = recipe.folder();
    let (image, content) = (folder.join("esp.img"), folder.join("esp"));
    let _ = fs::remove_file(&image);
    let _ = fs::remove_dir_all(&content);
    let efi = kernel::efi(recipe.arch);
    let boot = content.join("EFI/BOOT");
    for part in [&boot, &content.join("EFI/systemd"), &content.join("EFI/Linux"), &content.join("loader")] {
        fs::create_dir_all(part)?;
    }
    let loader = content.join(format!("EFI/systemd/systemd-boot{efi}.efi"));
    let unpacked = format!(
        "set -e; dpkg-deb --fsys-tarfile '{}' | tar -xO ./usr/lib/systemd/boot/efi/systemd-boot{efi}.efi > '{}'",
        packages.file_of("systemd-boot-efi")?,
        tools.inside(&loader)?
    );
    tools.output(&["sh", "-c", &unpacked])?;
    let mut settings = fs::read_to_string(recipe_file("loader.conf"))?;
    if let Some(keys) = &recipe.keys {
        let tools = tools.with_keys(Some(keys));
        keys.sign(&tools, &loader)?;
        keys.enrolment(&tools, &content.join("loader/keys/auto"), epoch_s)?;
        // A virtual machine's firmware takes them by itself; on others it may lock devices out, so somebody has to say so.
        settings.push_str(if recipe.enrol { "secure-boot-enroll force\n" } else { "secure-boot-enroll if-safe\n" });
    }
    fs::copy(&loader, boot.join(format!("BOOT{}.EFI", efi.to_uppercase())))?;
    fs::write(content.join("loader/loader.conf"), settings)?;
    let entry = format!("EFI/Linux/skerry_{}+{TRIES}.efi", recipe.version);
    fs::copy(recipe.payload().join("kernel.efi"), content.join(entry))?;
    File::create(&image)?.set_len(ESP_MIB * MIB)?;
    let script = format!(
        "set -e; mkfs.vfat -F 32 -S 512 -n ESP -i {ESP_SERIAL} --invariant {image} >/dev/null; cd {content}; \
         find . -exec touch -h -d @{epoch_s} {{}} +; find . -mindepth 1 -type d | sort | cut -c3- | \
         while read -r d; do mmd -i {image} \"::$d\"; done; find . -type f | sort | cut -c3- | \
         while read -r f; do mcopy -m -i {image} \"$f\" \"::$f\"; done",
        image = tools.inside(&image)?,
        content = tools.inside(&content)?,
    );
    tools.step("the partition that firmware reads", &["sh", "-c", &script])?;
    fs::remove_dir_all(content)?;
    Ok(image)
}

/// Copies a file into a partition; blocks of zeroes stay holes.
fn copy_sparse(from: &Path, disk: &Path, partition: &Partition) -> Result<()> {
    let mut source = File::open(from)?;
    if source.metadata()?.len() > partition.bytes {
        bail!("does not fit into {}", partition.name);
    }
    let mut target = File::options().write(true).open(disk)?;
    let mut block = vec![0; MIB as usize];
    let mut at = partition.start;
    loop {
        let read = source.read(&mut block)?;
        let Some(content) = block.get(..read).filter(|content| !content.is_empty()) else { return Ok(()) };
        if content.iter().any(|byte| *byte != 0) {
            target.seek(SeekFrom::Start(at))?;
            target.write_all(content)?;
        }
        at += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "00112233445566778899aabbccddeeff0123456789abcdeffedcba9876543210";

    #[test]
    fn the_slots_number_is_the_root_hash_in_two_halves() {
        assert_eq!(uuid(HASH, 0).unwrap(), "00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(uuid(HASH, 32).unwrap(), "01234567-89ab-cdef-fedc-ba9876543210");
        assert!(uuid(&HASH[..40], 32).is_err());
    }

    #[test]
    fn partitions_follow_each_other_and_leave_room_for_both_tables() {
        let partitions = layout(Arch::X86_64, "1.2.3", HASH).unwrap();
        let names: Vec<&str> = partitions.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["ESP", "skerry_1.2.3", "skerry_1.2.3_verity", "_empty", "_empty"]);
        assert!(partitions.windows(2).all(|pair| pair[0].start + pair[0].bytes == pair[1].start));
        assert!(partitions.iter().all(|p| p.start % MIB == 0));
        assert_eq!(disk_bytes(&partitions), (1 + 512 + 2 * 528 + 1) * MIB);
        let mut uuids: Vec<&str> = partitions.iter().map(|p| p.uuid.as_str()).collect();
        uuids.dedup();
        assert_eq!(uuids.len(), 5);
    }

    #[test]
    fn the_table_is_what_sfdisk_reads() {
        let text = script(&layout(Arch::Arm64, "1.2.3", HASH).unwrap());
        assert!(
            text.contains(
                "start=1050624, size=1048576, type=b921b045-1df0-41c3-af44-4c6f280d3fae, \
                 uuid=00112233-4455-6677-8899-aabbccddeeff, name=\"skerry_1.2.3\"\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn the_running_system_mounts_the_partition_that_is_made() {
        let fstab = fs::read_to_string(recipe_file("root/etc/fstab")).unwrap();
        assert!(fstab.contains("\n/dev/skerry/esp /efi vfat "), "{fstab}");
        // The link is made for the name that the partition has (crates/init/src/devices.rs).
        let init = fs::read_to_string(crate::run::root().join("crates/init/src/devices.rs")).unwrap();
        let name = layout(Arch::X86_64, "1.2.3", HASH).unwrap().remove(0).name;
        assert!(init.contains(&format!("rule(\"{name}\", \"esp\")")), "{name}");
    }
}
