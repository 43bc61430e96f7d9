//! The kernel's settings (`sysctl`), made before any driver brings a network interface: interfaces get what is the default
//! when they come. The file is a copy of the root's, in systemd's format.

use std::fs;
use std::path::{Path, PathBuf};

/// A setting, as the file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<'f> {
    name: &'f str,
    value: &'f str,
}

/// Reads the file: one `name = value` a line; `#` and `;` begin a remark.
pub fn list(text: &str) -> impl Iterator<Item = Setting<'_>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    lines.filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        Some(Setting { name: name.trim(), value: value.trim() })
    })
}

impl Setting<'_> {
    /// Makes it, below `/proc/sys`.
    ///
    /// # Errors
    /// A sentence. The boot goes on, as it does where systemd makes settings.
    pub fn make(&self, sys: &Path) -> Result<(), String> {
        let path = self.path(sys);
        // The kernel has its settings; a file that is not there is not made.
        let opened = fs::File::options().write(true).open(&path);
        let written = opened.and_then(|mut file| std::io::Write::write_all(&mut file, self.value.as_bytes()));
        written.map_err(|cause| format!("{} stays as it is: {cause}", self.name))
    }

    fn path(&self, sys: &Path) -> PathBuf {
        self.name.split('.').fold(sys.to_owned(), |path, part| path.join(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_made_and_no_new_ones() {
        let sys = tempfile::tempdir().unwrap();
        fs::create_dir_all(sys.path().join("net/ipv4")).unwrap();
        fs::write(sys.path().join("net/ipv4/ip_forward"), "1").unwrap();
        let text = "# A server.\nnet.ipv4.ip_forward = 0\n\n; nothing\nnet.ipv4.other=1\nno setting\n";
        let settings: Vec<_> = list(text).collect();
        assert_eq!(settings.len(), 2);
        assert_eq!(settings[0].make(sys.path()), Ok(()));
        assert_eq!(fs::read_to_string(sys.path().join("net/ipv4/ip_forward")).unwrap(), "0");
        assert!(settings[1].make(sys.path()).is_err_and(|why| why.starts_with("net.ipv4.other stays")));
        assert!(!sys.path().join("net/ipv4/other").exists());
    }
}
