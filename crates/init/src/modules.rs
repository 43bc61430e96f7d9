//! Kernel modules, in the order of the list that the image was built with.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// A line of the list: a file, and the module's parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module<'l> {
    pub path: &'l str,
    pub parameters: &'l str,
}

/// Reads the list: one module a line, its parameters behind a space; `#` begins a remark.
pub fn list(text: &str) -> impl Iterator<Item = Module<'_>> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let (path, parameters) = line.split_once(' ').unwrap_or((line, ""));
        Module { path, parameters: parameters.trim() }
    })
}

impl Module<'_> {
    /// The kernel unpacks what is compressed.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        Path::new(self.path).extension().is_some_and(|end| ["xz", "zst", "gz"].iter().any(|known| end == *known))
    }

    /// Loads it, and gives its memory back. One that is there already, or whose device is not there, is fine.
    ///
    /// # Errors
    /// A sentence. The boot goes on: it may be a driver for another machine.
    pub fn load(&self) -> Result<(), String> {
        let failed = |cause: &dyn std::fmt::Display| format!("module {}: {cause}", self.path);
        let file = File::open(self.path).map_err(|cause| failed(&cause))?;
        let parameters = CString::new(self.parameters).map_err(|cause| failed(&cause))?;
        // MODULE_INIT_COMPRESSED_FILE; the name is not in the library yet.
        let flags = if self.is_compressed() { ModuleInitFlags::from_bits_retain(4) } else { ModuleInitFlags::empty() };
        let outcome = finit_module(&file, &parameters, flags);
        // A file of the initial file system is memory.
        let _ = fs::remove_file(self.path);
        match outcome {
            Ok(()) | Err(Errno::EEXIST | Errno::ENODEV) => Ok(()),
            Err(cause) => Err(failed(&cause)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read() {
        let text =
            "# drivers\n/modules/virtio_blk.ko\n\n  /modules/iTCO_wdt.ko.xz  nowayout=1 heartbeat=60 \n/m/a.ko.zst";
        let modules: Vec<Module<'_>> = list(text).collect();
        assert_eq!(
            modules,
            [
                Module { path: "/modules/virtio_blk.ko", parameters: "" },
                Module { path: "/modules/iTCO_wdt.ko.xz", parameters: "nowayout=1 heartbeat=60" },
                Module { path: "/m/a.ko.zst", parameters: "" },
            ]
        );
        assert_eq!(modules.iter().map(Module::is_compressed).collect::<Vec<_>>(), [false, true, true]);
    }

    #[test]
    fn a_module_that_is_not_there_is_a_sentence() {
        let missing = Module { path: "/nonexistent/x.ko", parameters: "" };
        assert!(missing.load().is_err_and(|text| text.starts_with("module /nonexistent/x.ko: ")));
    }
}
