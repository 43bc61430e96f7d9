//! The verified block device: three calls to device-mapper.
//!
//! Messages are laid out by hand as bytes (`linux/dm-ioctl.h`), in the machine's own byte order, so that what is sent can be
//! looked at by tests.
#![allow(unsafe_code, reason = "ioctls have no safe form")]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::verity::Target;
use crate::{Failure, doing};

/// Through which device-mapper is spoken to.
const CONTROL: &str = "/dev/mapper/control";

const HEADER_BYTES: usize = 312;
const TARGET_BYTES: usize = 40;
/// The kernel reads and writes no more than this, because the header says so.
const MESSAGE_BYTES: usize = 1024;
const READ_ONLY: u32 = 1;

/// Where things stand in the header.
mod at {
    pub(super) const VERSION: usize = 0;
    pub(super) const SIZE: usize = 12;
    pub(super) const START: usize = 16;
    pub(super) const TARGETS: usize = 20;
    pub(super) const FLAGS: usize = 28;
    pub(super) const DEVICE: usize = 40;
    pub(super) const NAME: usize = 48;
}

type Message = [u8; MESSAGE_BYTES];

nix::ioctl_readwrite_bad!(dm_create, nix::request_code_readwrite!(0xfd, 3, HEADER_BYTES), Message);
nix::ioctl_readwrite_bad!(dm_resume, nix::request_code_readwrite!(0xfd, 6, HEADER_BYTES), Message);
nix::ioctl_readwrite_bad!(dm_load, nix::request_code_readwrite!(0xfd, 9, HEADER_BYTES), Message);

/// Makes the device, read-only, and says where it is, such as `/dev/dm-0`.
///
/// # Errors
/// When the kernel refuses one of the calls, such as a table with a root hash that does not fit the tree.
pub fn create(name: &str, target: &Target, dev: &Path) -> Result<PathBuf, Failure> {
    let control = OpenOptions::new().read(true).write(true).open(CONTROL).map_err(doing(CONTROL))?;
    let table = table(name, target)?;
    let made = call(&control, dm_create, header(name, 0)?).map_err(doing("device-mapper, making the device"))?;
    call(&control, dm_load, table).map_err(doing("device-mapper, loading the table"))?;
    // A call without the suspend flag resumes, which puts the table to use.
    call(&control, dm_resume, header(name, 0)?).map_err(doing("device-mapper, using the table"))?;
    Ok(dev.join(format!("dm-{}", minor(&made))))
}

type Ioctl = unsafe fn(i32, *mut Message) -> nix::Result<i32>;

fn call(control: &File, ioctl: Ioctl, mut message: Message) -> Result<Message, Errno> {
    // SAFETY: the descriptor is open for the whole call, and the kernel stays within the message: its header (made by
    // `header` only) gives the message's own size.
    unsafe { ioctl(control.as_raw_fd(), &raw mut message) }?;
    Ok(message)
}

fn header(name: &str, flags: u32) -> Result<Message, Failure> {
    // One byte more ends the name.
    const NAME_MAX_BYTES: usize = 127;
    if name.is_empty() || name.len() > NAME_MAX_BYTES || name.contains('\0') {
        return Err(Failure(format!("{name:?} cannot be the name of a device")));
    }
    let mut message = [0; MESSAGE_BYTES];
    put(&mut message, at::VERSION, &4_u32.to_ne_bytes());
    put(&mut message, at::SIZE, &(MESSAGE_BYTES as u32).to_ne_bytes());
    put(&mut message, at::START, &(HEADER_BYTES as u32).to_ne_bytes());
    put(&mut message, at::FLAGS, &flags.to_ne_bytes());
    put(&mut message, at::NAME, name.as_bytes());
    Ok(message)
}

/// The message that loads one verity target.
fn table(name: &str, target: &Target) -> Result<Message, Failure> {
    let parameters = target.parameters.as_bytes();
    let begin = HEADER_BYTES + TARGET_BYTES;
    if begin + parameters.len() >= MESSAGE_BYTES || parameters.contains(&0) {
        return Err(Failure("the table of the verified device is too long".to_owned()));
    }
    let mut message = header(name, READ_ONLY)?;
    put(&mut message, at::TARGETS, &1_u32.to_ne_bytes());
    // It starts at sector 0, which is there already.
    put(&mut message, HEADER_BYTES + 8, &target.length_sectors.to_ne_bytes());
    put(&mut message, HEADER_BYTES + 24, b"verity");
    put(&mut message, begin, parameters);
    Ok(message)
}

fn put(message: &mut Message, at: usize, bytes: &[u8]) {
    message[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Which device it became: the low and the high part of the minor number stand apart.
fn minor(message: &Message) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&message[at::DEVICE..at::DEVICE + 8]);
    let device = u64::from_ne_bytes(bytes);
    (device & 0xff) | ((device >> 12) & 0x000f_ff00)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(message: &Message, at: usize) -> u32 {
        u32::from_ne_bytes(message[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn a_table_is_laid_out_as_the_kernel_reads_it() {
        let target = Target { length_sectors: 0x1_0000_0008, parameters: "1 a b".to_owned() };
        let message = table("root", &target).unwrap();
        let header = [at::VERSION, at::SIZE, at::START, at::TARGETS, at::FLAGS].map(|at| word(&message, at));
        assert_eq!(header, [4, 1024, 312, 1, READ_ONLY]);
        assert_eq!(&message[at::NAME..at::NAME + 5], b"root\0");
        assert_eq!(message[312..320], [0; 8]);
        assert_eq!(message[320..328], 0x1_0000_0008_u64.to_ne_bytes());
        assert_eq!(&message[336..343], b"verity\0");
        assert_eq!(&message[352..358], b"1 a b\0");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let target = |parameters: String| Target { length_sectors: 8, parameters };
        assert!(table("root", &target("x".repeat(671))).is_ok());
        assert!(table("root", &target("x".repeat(672))).is_err());
        assert!(table("root", &target("a\0b".to_owned())).is_err());
        assert!(header(&"n".repeat(127), 0).is_ok());
        assert!(header(&"n".repeat(128), 0).is_err());
        assert!(header("", 0).is_err());
    }

    #[test]
    fn the_device_is_found_by_its_number() {
        let mut message = header("root", 0).unwrap();
        // 253:7, and a minor number of more than eight bits (0x12345).
        put(&mut message, at::DEVICE, &0xfd07_u64.to_ne_bytes());
        assert_eq!(minor(&message), 7);
        put(&mut message, at::DEVICE, &0x1230_fd45_u64.to_ne_bytes());
        assert_eq!(minor(&message), 0x12345);
    }
}
