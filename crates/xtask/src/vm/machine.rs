//! One machine: QEMU with firmware, disk, sticks, network, watchdog, and a serial line that is listened to.
//!
//! Lives here: QEMU's arguments, whether the processor's own virtualisation works, waiting for what the machine says, and
//! how much work it was. Not here: what is expected of it (journey.rs).

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::tpm::{self, Tpm};
use crate::image::Arch;

/// How long the trial of the processor's own virtualisation may take.
const TRIAL: Duration = Duration::from_secs(5);
/// What firmware says when it hands over.
pub(super) const FIRMWARE_IS_UP: &str = "BdsDxe: starting";

#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) https: u16,
    pub(super) federation: u16,
}

#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) arch: Arch,
    pub(super) disk: PathBuf,
    pub(super) sticks: Vec<PathBuf>,
    /// Sticks hang on USB; else they are disks like any other, for kernels that have no USB.
    pub(super) usb: bool,
    pub(super) ports: Ports,
    /// What the machine's clock shows at the start, in QEMU's words; now if nothing is said.
    pub(super) clock: Option<String>,
    /// Firmware that checks signatures, and the file in which it keeps the keys; made if it is not there.
    pub(super) secure: Option<PathBuf>,
    /// A folder with the state of a TPM; made if it is not there.
    pub(super) tpm: Option<PathBuf>,
}

impl Setup {
    pub(super) fn new(arch: Arch, disk: PathBuf, ports: Ports) -> Self {
        Self { arch, disk, sticks: Vec::new(), usb: true, ports, clock: None, secure: None, tpm: None }
    }

    fn program(&self) -> &'static str {
        match self.arch {
            Arch::X86_64 => "qemu-system-x86_64",
            Arch::Arm64 => "qemu-system-aarch64",
        }
    }

    fn firmware(&self) -> [&'static str; 2] {
        match self.arch {
            Arch::X86_64 if self.secure.is_some() => {
                ["/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"]
            }
            Arch::X86_64 => ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"],
            Arch::Arm64 => ["/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"],
        }
    }

    /// QEMU's arguments. The processor is one that QEMU emulates without much work: wide vectors are slow.
    fn args(&self, variables: &Path, kvm: bool) -> Vec<String> {
        let mut args = self.plain_args(variables, kvm);
        if self.secure.is_some() {
            // Only firmware itself, in its own mode of the processor, writes to where it keeps the keys.
            args.extend(["-global", "driver=cfi.pflash01,property=secure,value=on"].map(str::to_owned));
            args.extend(["-global", "ICH9-LPC.disable_s3=1"].map(str::to_owned));
        }
        if let Some(tpm) = &self.tpm {
            let device = if self.arch == Arch::X86_64 { "tpm-crb" } else { "tpm-tis-device" };
            let socket = tpm.join(tpm::SOCKET);
            args.extend(["-chardev".to_owned(), format!("socket,id=tpm-line,path={}", socket.display())]);
            args.extend(["-tpmdev", "emulator,id=tpm,chardev=tpm-line", "-device"].map(str::to_owned));
            args.push(format!("{device},tpmdev=tpm"));
        }
        args
    }

    fn plain_args(&self, variables: &Path, kvm: bool) -> Vec<String> {
        let mut args: Vec<String> = Vec::new();
        let mut add = |pair: [&str; 2]| args.extend(pair.map(str::to_owned));
        let (kind, processor) = match self.arch {
            Arch::X86_64 if self.secure.is_some() => ("q35,smm=on", "Nehalem,-cx16,model=54"),
            Arch::X86_64 => ("q35", "Nehalem,-cx16,model=54"),
            Arch::Arm64 => ("virt", "cortex-a72"),
        };
        let (accelerator, processor) = if kvm { ("kvm", "host") } else { ("tcg,thread=multi", processor) };
        let [code, _] = self.firmware();
        add(["-M", kind]);
        add(["-accel", accelerator]);
        add(["-cpu", processor]);
        // An emulated machine with two processors spends a good part of its time on keeping them in step.
        add(["-smp", if kvm { "2" } else { "1" }]);
        add(["-m", "1024"]);
        // No drive for disks of glass, no screen that nobody sees: what is here is said here.
        add(["-nodefaults", "-no-user-config"]);
        add(["-display", "none"]);
        add(["-uuid", "5b3f6a10-9f6e-4b43-8f7a-736b65727279"]);
        add(["-drive", &format!("if=pflash,format=raw,unit=0,readonly=on,file={code}")]);
        add(["-drive", &format!("if=pflash,format=raw,unit=1,file={}", variables.display())]);
        add(["-drive", &format!("if=none,id=disk,format=raw,cache=unsafe,file={}", self.disk.display())]);
        add(["-device", "virtio-blk-pci,drive=disk,bootindex=0"]);
        add(["-device", "virtio-rng-pci"]);
        let Ports { https, federation } = self.ports;
        let forward = format!("hostfwd=tcp:127.0.0.1:{https}-:443,hostfwd=tcp:127.0.0.1:{federation}-:8448");
        add(["-netdev", &format!("user,id=net,restrict=on,{forward}")]);
        add(["-device", "virtio-net-pci,netdev=net,romfile="]);
        if self.arch == Arch::X86_64 {
            add(["-device", "i6300esb"]);
            add(["-action", "watchdog=reset"]);
        }
        if self.usb && !self.sticks.is_empty() {
            add(["-device", "qemu-xhci"]);
        }
        for (number, stick) in self.sticks.iter().enumerate() {
            add(["-drive", &format!("if=none,id=stick{number},format=raw,file={}", stick.display())]);
            let device = if self.usb { "usb-storage,removable=on" } else { "virtio-blk-pci" };
            add(["-device", &format!("{device},drive=stick{number}")]);
        }
        if let Some(clock) = &self.clock {
            add(["-rtc", &format!("base={clock}")]);
        }
        args
    }
}

/// A machine that runs.
pub(super) struct Machine {
    child: Child,
    /// Ends when the machine does.
    _tpm: Option<Tpm>,
    lines: Receiver<Vec<u8>>,
    /// Everything that was said and not yet looked at.
    heard: String,
    /// What came before the marker that was waited for last.
    passed: String,
    started: Instant,
    name: String,
}

impl Machine {
    /// Starts a machine whose serial line is listened to, and kept in a file.
    pub(super) fn start(setup: &Setup, folder: &Path, name: &str) -> Result<Self> {
        let variables = variables(setup, folder)?;
        let kvm = kvm_works(setup, folder)?;
        let tpm = setup.tpm.as_deref().map(Tpm::start).transpose()?;
        let mut child = Command::new(setup.program())
            .args(setup.args(&variables, kvm))
            .args(["-monitor", "none", "-serial", "stdio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| setup.program().to_owned())?;
        let lines = listen(child.stdout.take().context("no serial line")?, folder.join(format!("{name}.log")))?;
        Ok(Self {
            child,
            _tpm: tpm,
            lines,
            heard: String::new(),
            passed: String::new(),
            started: Instant::now(),
            name: name.into(),
        })
    }

    /// Runs a machine whose serial line is the terminal, to its end.
    pub(super) fn by_hand(setup: &Setup, folder: &Path) -> Result<()> {
        let variables = variables(setup, folder)?;
        let kvm = kvm_works(setup, folder)?;
        let _tpm = setup.tpm.as_deref().map(Tpm::start).transpose()?;
        let status = Command::new(setup.program())
            .args(setup.args(&variables, kvm))
            .args(["-serial", "mon:stdio"])
            .status()
            .with_context(|| setup.program().to_owned())?;
        if !status.success() {
            bail!("{} ended with {status}", setup.program());
        }
        Ok(())
    }

    /// Waits until the machine says something; what comes before it is heard and done with.
    pub(super) fn expect(&mut self, marker: &str, limit: Duration) -> Result<()> {
        self.expect_any(&[marker], limit).map(|_| ())
    }

    /// Waits until the machine says one of these: which one came first.
    pub(super) fn expect_any(&mut self, markers: &[&str], limit: Duration) -> Result<usize> {
        let until = Instant::now() + limit;
        loop {
            let places =
                markers.iter().enumerate().filter_map(|(which, marker)| Some((self.heard.find(marker)?, which)));
            if let Some((at, which)) = places.min() {
                let marker = markers.get(which).copied().unwrap_or_default();
                self.passed = self.heard.drain(..at + marker.len()).take(at).collect();
                println!("   {}: {marker:?} after {}", self.name, self.work());
                return Ok(which);
            }
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.heard.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!(
                        "{}: the machine ended; {markers:?} was waited for. It said last:\n{}",
                        self.name,
                        self.last()
                    )
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{}: no {markers:?} in {} s. It said last:\n{}", self.name, limit.as_secs(), self.last())
                }
            }
        }
    }

    /// Waits for a question on the serial console, and answers it.
    pub(super) fn answer(&mut self, question: &str, answer: &str, limit: Duration) -> Result<()> {
        self.expect(question, limit)?;
        let typed = self.child.stdin.as_mut().context("no serial line")?;
        writeln!(typed, "{answer}")?;
        Ok(typed.flush()?)
    }

    /// The rest of the line that is being said.
    pub(super) fn line(&mut self, limit: Duration) -> Result<String> {
        self.expect("\n", limit)?;
        Ok(self.passed.trim().to_owned())
    }

    /// Asks again and again until there is an answer.
    pub(super) fn until<T>(&mut self, what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
        let until = Instant::now() + limit;
        loop {
            if let Some(answer) = ask() {
                println!("   {}: {what} after {}", self.name, self.work());
                return Ok(answer);
            }
            if self.child.try_wait()?.is_some() || Instant::now() > until {
                while let Ok(bytes) = self.lines.try_recv() {
                    self.heard.push_str(&String::from_utf8_lossy(&bytes));
                }
                bail!("{}: no {what} in {} s; it said last:\n{}", self.name, limit.as_secs(), self.last());
            }
            thread::sleep(Duration::from_millis(250));
        }
    }

    /// Power is cut.
    pub(super) fn cut(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Seconds of processor that it has taken so far.
    pub(super) fn processor_s(&self) -> Result<f64> {
        processor_s(self.child.id()).context("the machine ended")
    }

    /// How long it has run, and how much of a processor that took.
    fn work(&self) -> String {
        let processor = self.processor_s().map_or("?".to_owned(), |s| format!("{s:.1}"));
        format!("{:.0} s, {processor} s of processor", self.started.elapsed().as_secs_f64())
    }

    fn last(&self) -> &str {
        let from = self.heard.len().saturating_sub(3000);
        let from = (from..=self.heard.len()).find(|at| self.heard.is_char_boundary(*at)).unwrap_or(0);
        self.heard.get(from..).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds of processor that a process has used, its threads included.
fn processor_s(id: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    // A hundred ticks a second, on every Linux that there is.
    Some((user + system) / 100.0)
}

/// Passes on what comes, and keeps it.
fn listen(mut from: impl Read + Send + 'static, log: PathBuf) -> Result<Receiver<Vec<u8>>> {
    let mut log = File::create(&log).with_context(|| log.display().to_string())?;
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read) = from.read(&mut buffer) {
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { return };
            let _ = log.write_all(bytes);
            if send.send(bytes.to_vec()).is_err() {
                return;
            }
        }
    });
    Ok(receive)
}

/// Firmware's own memory: each machine starts with an empty one, unless it shall know keys.
fn variables(setup: &Setup, folder: &Path) -> Result<PathBuf> {
    let [_, empty] = setup.firmware();
    let file = setup.secure.clone().unwrap_or_else(|| folder.join("firmware-variables.fd"));
    if setup.secure.is_some() && file.exists() {
        return Ok(file);
    }
    fs::copy(empty, &file).with_context(|| empty.to_owned())?;
    Ok(file)
}

/// Whether firmware comes up under the processor's own virtualisation. A device that opens is no proof: some can run
/// chosen systems only.
fn kvm_works(setup: &Setup, folder: &Path) -> Result<bool> {
    static WORKS: OnceLock<bool> = OnceLock::new();
    match WORKS.get() {
        Some(works) => Ok(*works),
        None => kvm_tried(setup, folder).map(|works| *WORKS.get_or_init(|| works)),
    }
}

fn kvm_tried(setup: &Setup, folder: &Path) -> Result<bool> {
    let own = if cfg!(target_arch = "aarch64") { Arch::Arm64 } else { Arch::X86_64 };
    if own != setup.arch || File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(false);
    }
    // Neither its keys nor its TPM are touched by a trial.
    let setup = &Setup { secure: None, tpm: None, ..setup.clone() };
    let variables = variables(setup, folder)?;
    let mut child = Command::new(setup.program())
        .args(setup.args(&variables, true))
        .args(["-monitor", "none", "-serial", "stdio", "-snapshot", "-no-reboot"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let lines = listen(child.stdout.take().context("no serial line")?, folder.join("kvm-trial.log"))?;
    let until = Instant::now() + TRIAL;
    let mut heard = String::new();
    while let Ok(bytes) = lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
        heard.push_str(&String::from_utf8_lossy(&bytes));
        if heard.contains(FIRMWARE_IS_UP) {
            break;
        }
    }
    let works = heard.contains(FIRMWARE_IS_UP) && child.try_wait()?.is_none();
    let _ = child.kill();
    child.wait()?;
    println!("KVM {}", if works { "works" } else { "does not work here: the processor is emulated" });
    Ok(works)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(setup: &Setup, kvm: bool) -> String {
        setup.args(Path::new("/v.fd"), kvm).join(" ")
    }

    #[test]
    fn doors_are_on_loopback_and_the_machine_has_no_other_way_out() {
        let setup = Setup::new(Arch::X86_64, "/d.raw".into(), Ports { https: 4430, federation: 4480 });
        let args = args(&setup, false);
        assert!(
            args.contains("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:4430-:443,hostfwd=tcp:127.0.0.1:4480-:8448")
        );
        assert!(args.contains("-accel tcg,thread=multi -cpu Nehalem,-cx16"));
        assert!(!args.contains("usb"));
    }

    #[test]
    fn sticks_hang_on_usb_where_the_kernel_has_it() {
        let mut setup = Setup::new(Arch::X86_64, "/d.raw".into(), Ports { https: 1, federation: 2 });
        setup.sticks.push("/s.raw".into());
        setup.clock = Some("1970-01-01".into());
        assert!(args(&setup, true).contains("-device usb-storage,removable=on,drive=stick0 -rtc base=1970-01-01"));
        setup.usb = false;
        assert!(args(&setup, true).contains("-device virtio-blk-pci,drive=stick0"));
    }

    #[test]
    fn firmware_that_checks_keeps_its_keys_from_the_system() {
        let mut setup = Setup::new(Arch::X86_64, "/d.raw".into(), Ports { https: 1, federation: 2 });
        assert!(!args(&setup, false).contains("secure") && !args(&setup, false).contains("tpm"));
        setup.secure = Some("/keys.fd".into());
        setup.tpm = Some("/tpm".into());
        let args = args(&setup, false);
        assert!(args.contains("-M q35,smm=on") && args.contains("OVMF_CODE_4M.secboot.fd"), "{args}");
        assert!(args.contains("property=secure,value=on"), "{args}");
        assert!(args.contains("path=/tpm/line -tpmdev emulator,id=tpm,chardev=tpm-line -device tpm-crb,tpmdev=tpm"));
    }

    #[test]
    fn our_own_work_is_counted() {
        assert!(processor_s(std::process::id()).is_some());
        assert!(processor_s(u32::MAX).is_none());
    }
}
