//! Whoever stands before the box, at any of its consoles.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Between two looks for a console when there is none.
const PAUSE: Duration = Duration::from_secs(1);
/// Nobody types more on a line.
const LINE_MAX_BYTES: usize = 4096;

/// Somebody who reads and types.
pub trait Person {
    fn say(&mut self, text: &str);
    /// The next line, from whichever console it comes.
    fn line(&mut self) -> String;
}

/// All consoles at once: what is said is said on each, and whoever types first is heard.
pub struct Consoles {
    paths: Vec<PathBuf>,
    open: Vec<Console>,
}

struct Console {
    terminal: File,
    typed: Vec<u8>,
}

impl Consoles {
    #[must_use]
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, open: Vec::new() }
    }

    /// Opens them, unless they are open. A terminal never becomes ours: a line that hangs up ends nothing.
    fn ready(&mut self) {
        if !self.open.is_empty() {
            return;
        }
        let open = |path: &PathBuf| {
            let flags = (OFlag::O_NOCTTY | OFlag::O_NONBLOCK).bits();
            let terminal = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).ok()?;
            Some(Console { terminal, typed: Vec::new() })
        };
        self.open = self.paths.iter().filter_map(open).collect();
    }

    /// Waits until somebody has typed something, and reads it.
    fn listen(&mut self) {
        let mut waiting: Vec<PollFd<'_>> =
            self.open.iter().map(|console| PollFd::new(console.terminal.as_fd(), PollFlags::POLLIN)).collect();
        if waiting.is_empty() || poll(&mut waiting, PollTimeout::NONE).is_err() {
            return sleep(PAUSE);
        }
        let ready: Vec<bool> = waiting.iter().map(|one| one.any().unwrap_or(true)).collect();
        let mut ready = ready.into_iter();
        let mut hung_up = false;
        self.open.retain_mut(|console| {
            let stays = !ready.next().unwrap_or(false) || console.read();
            hung_up |= !stays;
            stays
        });
        if hung_up {
            sleep(PAUSE);
        }
    }
}

impl Console {
    /// Whether the terminal is still there.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 512];
        match self.terminal.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.typed.extend(buffer.iter().take(count));
                if self.typed.len() > LINE_MAX_BYTES {
                    self.typed.clear();
                }
                true
            }
            Err(cause) => cause.kind() == std::io::ErrorKind::WouldBlock,
        }
    }

    fn line(&mut self) -> Option<String> {
        let end = self.typed.iter().position(|byte| matches!(byte, b'\n' | b'\r'))?;
        let line: Vec<u8> = self.typed.drain(..=end).take(end).collect();
        Some(String::from_utf8_lossy(&line).trim().to_owned())
    }
}

impl Person for Consoles {
    fn say(&mut self, text: &str) {
        self.ready();
        for console in &mut self.open {
            // Who is not there does not hear.
            let _ = console.terminal.write_all(text.as_bytes());
        }
    }

    fn line(&mut self) -> String {
        loop {
            self.ready();
            if let Some(line) = self.open.iter_mut().find_map(Console::line) {
                return line;
            }
            self.listen();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_types_is_heard() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["one", "two"].map(|name| folder.path().join(name));
        for path in &paths {
            nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let mut consoles = Consoles::new(paths.to_vec());
        consoles.say("");
        let mut second = OpenOptions::new().write(true).open(&paths[1]).unwrap();
        second.write_all(b"a ke").unwrap();
        second.write_all(b"y \r\nanother\n").unwrap();
        assert_eq!(consoles.line(), "a key");
        assert_eq!(consoles.line(), "");
        assert_eq!(consoles.line(), "another");
    }
}
