//! A data folder without space: clear errors, reads go on, writes come back with the space, nothing acknowledged is lost.
//!
//! The small disk is a tmpfs, which takes root to mount. Where that is refused the test says so and passes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::check::{Shown, read_on};
use crate::client::{Session, part};
use crate::server::Server;

const DISK_MIB: usize = 256;
const BALLAST_MIB: usize = 40;
const RECOVERY: Duration = Duration::from_secs(30);

/// A tmpfs that goes away with the value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={DISK_MIB}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        mounted.is_ok_and(|out| out.status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_clearly_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&folder.path().join("disk")) else {
        println!("#### SKIPPED: the full-disk test needs root and the right to mount a tmpfs ####");
        return;
    };
    let ballast = [disk.0.join("ballast1"), disk.0.join("ballast2")];
    for file in &ballast {
        std::fs::write(file, vec![1; BALLAST_MIB << 20]).unwrap();
    }
    let mut server = Server::new(folder.path(), &disk.0.join("data"));
    server.start().await;
    let alice = Session::register(&server.url, "alice").await;
    let room = alice.ok("POST", "/v3/createRoom", &json!({ "preset": "private_chat" })).await;
    let room = room["room_id"].as_str().unwrap();

    let mut speaker = Speaker { session: &alice, room, said: Vec::new(), next: 0 };
    let newest = format!("/v3/rooms/{}/messages?dir=b&limit=5", part(room));
    speaker.until_refused().await;
    println!("full disk: refused after {} events", speaker.said.len());
    // Reading does not need space.
    assert_eq!(alice.ok("GET", &newest, &Value::Null).await["chunk"].as_array().unwrap().len(), 5);
    std::fs::remove_file(&ballast[0]).unwrap();
    let waited = speaker.until_accepted().await;
    println!("full disk: writes again {:.1} s after there was space", waited.as_secs_f64());

    // Neither does starting.
    speaker.until_refused().await;
    println!("full disk: refused again after {} events", speaker.said.len());
    server.kill().await;
    server.start().await;
    assert_eq!(alice.ok("GET", &newest, &Value::Null).await["chunk"].as_array().unwrap().len(), 5);
    std::fs::remove_file(&ballast[1]).unwrap();
    let waited = speaker.until_accepted().await;
    println!("full disk: started on a full disk, writes {:.1} s after there was space", waited.as_secs_f64());
    for _ in 0..20 {
        assert_eq!(speaker.say().await, 200);
    }
    speaker.check().await;
    server.kill().await;
    server.start().await;
    speaker.check().await;
    server.kill().await;
}

struct Speaker<'a> {
    session: &'a Session,
    room: &'a str,
    /// Acknowledged events.
    said: Vec<String>,
    next: u64,
}

impl Speaker<'_> {
    /// Sends a large message; returns the status. A refused one is sent again next time, under the same transaction ID.
    async fn say(&mut self) -> u16 {
        let path = format!("/v3/rooms/{}/send/m.room.message/t{}", part(self.room), self.next);
        // Noise, so that compression does not make it small.
        let noise: String = (0..5000u64).map(|n| format!("{:08x}", hash(self.next * 5000 + n))).collect();
        let body = json!({ "msgtype": "m.text", "body": format!("alice {}", self.next), "noise": noise });
        let reply = self.session.call("PUT", &path, &body).await.unwrap();
        if reply.status == 200 {
            self.said.push(reply.json()["event_id"].as_str().unwrap().to_owned());
            self.next += 1;
        } else {
            let error = reply.json();
            assert!(reply.status >= 500, "a full disk is the server's fault: {} {error}", reply.status);
            assert!(error["errcode"].is_string() && error["error"].is_string(), "not a Matrix error: {error}");
        }
        reply.status
    }

    async fn until_refused(&mut self) {
        let enough = 2 * (DISK_MIB << 20) / 40_000;
        for _ in 0..enough {
            if self.say().await != 200 {
                return;
            }
        }
        panic!("{enough} events of 40 kB fit on a disk of {DISK_MIB} MiB");
    }

    async fn until_accepted(&mut self) -> Duration {
        let started = Instant::now();
        while self.say().await != 200 {
            assert!(started.elapsed() < RECOVERY, "still refused {RECOVERY:?} after there was space");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        started.elapsed()
    }

    /// Everything acknowledged is there once, in order.
    async fn check(&self) {
        let mut shown = Shown::default();
        read_on(self.session, self.room, &mut shown, true).await;
        let there: Vec<&String> = shown.order.iter().filter(|id| self.said.contains(id)).collect();
        assert_eq!(there, self.said.iter().collect::<Vec<_>>());
    }
}

/// Spreads numbers over 32 bits (a step of splitmix64).
fn hash(n: u64) -> u32 {
    let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (x >> 32) as u32
}
