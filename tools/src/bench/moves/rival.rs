//! Two nodes of Valkey or Redis and their own atomic slot migration (Valkey 9: `CLUSTER MIGRATESLOTS`, told to the source;
//! Redis 8.4: `CLUSTER MIGRATION IMPORT`, told to the target).
//!
//! They say no time at which a step was reached, so that they are asked for their state every two milliseconds: the switchover
//! is from the last answer that they were still copying to the first that it is done.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use antumbra_net::resp::codec::ClientReply;
use antumbra_net::shadow::MoveReport;
use clap::ValueEnum;

use crate::CliError;
use crate::client::Client;
use crate::moving::cpus::Cpus;

/// What two nodes need to agree.
const AGREE_MAX: Duration = Duration::from_secs(60);
/// A migration that takes longer is given up.
const MOVE_MAX: Duration = Duration::from_secs(600);
const ASK_EVERY: Duration = Duration::from_millis(2);
/// Slots of a cluster.
const SLOTS: u16 = 16_384;
/// Below their port numbers there must be room for the port of their bus, 10,000 above.
const PORT_MAX: u16 = 55_000;

/// Whose slot moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rival {
    Valkey,
    Redis,
}

impl Rival {
    fn program(self) -> &'static str {
        match self {
            Rival::Valkey => "valkey-server",
            Rival::Redis => "redis-server",
        }
    }

    /// What a state that was told means.
    fn step(self, state: &str) -> Step {
        match (self, state) {
            (Rival::Valkey, "success") | (Rival::Redis, "completed") => Step::Done,
            (_, "failed" | "cancelled" | "canceled") => Step::Failed,
            (Rival::Valkey, "waiting-to-pause" | "failover-paused" | "failover-granted")
            | (Rival::Redis, "wait-stream-eof" | "takeover" | "handoff") => Step::Switching,
            _ => Step::Copying,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Copying,
    Switching,
    Done,
    Failed,
}

/// Two servers.
pub struct Servers {
    rival: Rival,
    /// The rival and its version.
    pub name: String,
    children: Vec<(Child, SocketAddr)>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        for (child, _) in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Servers {
    /// Starts both, each on its CPUs.
    pub fn start(
        rival: Rival,
        program: Option<&Path>,
        fsync: &str,
        dir: &Path,
        cpus: [Cpus; 2],
    ) -> Result<Servers, CliError> {
        let program = program.map_or_else(|| PathBuf::from(rival.program()), Path::to_path_buf);
        let lacking = |cause: std::io::Error| {
            format!("{}: {cause}; install it, or say where it is: --rival-bin PATH", program.display())
        };
        let version = Command::new(&program).arg("--version").output().map_err(lacking)?;
        let version = String::from_utf8_lossy(&version.stdout);
        let number =
            version.split_whitespace().find_map(|word| word.strip_prefix("v=")).unwrap_or("of unknown version");
        let name = format!("{} {number}", rival.program().trim_end_matches("-server"));
        let mut servers = Servers { rival, name, children: Vec::new() };
        for (node, cpus) in (1..).zip(cpus) {
            let own = dir.join(format!("rival-{node}"));
            std::fs::create_dir_all(&own).map_err(|cause| format!("{}: {cause}", own.display()))?;
            let address = free_address()?;
            let log = own.join("log");
            let mut command = Command::new(&program);
            command
                .args(["--port", &address.port().to_string(), "--bind", "127.0.0.1", "--protected-mode", "no"])
                .args(["--cluster-enabled", "yes", "--save", "", "--appendonly", "yes", "--appendfsync", fsync])
                .args(["--logfile", &log.display().to_string(), "--dir"])
                .arg(&own)
                .stdout(Stdio::null())
                .stderr(Stdio::inherit());
            cpus.confine(&mut command);
            let child = command.spawn().map_err(lacking)?;
            servers.children.push((child, address));
        }
        servers.wait()?;
        Ok(servers)
    }

    /// Waits until both accept connections.
    fn wait(&mut self) -> Result<(), CliError> {
        let begin = Instant::now();
        for (child, address) in &mut self.children {
            while std::net::TcpStream::connect(*address).is_err() {
                if let Some(status) = child.try_wait()? {
                    return Err(format!("{} ended at its start: {status}", self.name).into());
                }
                if begin.elapsed() > AGREE_MAX {
                    return Err(format!("{} does not listen at {address}", self.name).into());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.children.iter().map(|(_, address)| *address).collect()
    }

    pub fn processes(&self) -> Vec<u32> {
        self.children.iter().map(|(child, _)| child.id()).collect()
    }

    /// The first node owns the slots up to this one, the second the others.
    pub async fn form_cluster(&self, admins: &[Client], slot: u16) -> Result<(), CliError> {
        admins[0].command(&format!("CLUSTER ADDSLOTSRANGE 0 {slot}")).await?;
        if slot + 1 < SLOTS {
            admins[1].command(&format!("CLUSTER ADDSLOTSRANGE {} {}", slot + 1, SLOTS - 1)).await?;
        }
        for (at, admin) in admins.iter().enumerate() {
            admin.command(&format!("CLUSTER SET-CONFIG-EPOCH {}", at + 1)).await?;
        }
        let other = self.children[1].1;
        admins[0].command(&format!("CLUSTER MEET {} {}", other.ip(), other.port())).await?;
        let begin = Instant::now();
        for admin in admins {
            loop {
                let info = match admin.command("CLUSTER INFO").await? {
                    ClientReply::Bulk(Some(info)) => String::from_utf8_lossy(&info).into_owned(),
                    other => return Err(format!("CLUSTER INFO: {other:?}").into()),
                };
                if info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:2") {
                    break;
                }
                if begin.elapsed() > AGREE_MAX {
                    return Err(format!("{}: no cluster within {} s", self.name, AGREE_MAX.as_secs()).into());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Moves a slot with so many bytes of values to the second node; waits for the end.
    pub async fn move_slot(&self, admins: &[Client], slot: u16, bytes: u64) -> Result<MoveReport, CliError> {
        let target = match admins[1].command("CLUSTER MYID").await? {
            ClientReply::Bulk(Some(id)) => String::from_utf8_lossy(&id).into_owned(),
            other => return Err(format!("CLUSTER MYID: {other:?}").into()),
        };
        let (begin, begin_ms) = (Instant::now(), now_ms()?);
        let (asked, question) = match self.rival {
            Rival::Valkey => {
                let order = format!("CLUSTER MIGRATESLOTS SLOTSRANGE {slot} {slot} NODE {target}");
                admins[0].command(&order).await?;
                (&admins[0], "CLUSTER GETSLOTMIGRATIONS")
            }
            Rival::Redis => {
                admins[1].command(&format!("CLUSTER MIGRATION IMPORT {slot} {slot}")).await?;
                (&admins[1], "CLUSTER MIGRATION STATUS ALL")
            }
        };
        let mut copying_ms = begin_ms;
        loop {
            let asked_ms = now_ms()?;
            let reply = asked.command(question).await?;
            let state = field(&reply, "state").ok_or_else(|| format!("{question}: no state in {reply:?}"))?;
            match self.rival.step(&state) {
                Step::Copying => copying_ms = asked_ms,
                Step::Switching => {}
                Step::Done => break,
                Step::Failed => {
                    let why = field(&reply, "message").or_else(|| field(&reply, "last_error")).unwrap_or_default();
                    return Err(format!("{}: the migration {state}: {why}", self.name).into());
                }
            }
            if begin.elapsed() > MOVE_MAX {
                return Err(
                    format!("{}: the migration is still {state} after {} s", self.name, MOVE_MAX.as_secs()).into()
                );
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        let (seconds, done_ms) = (begin.elapsed().as_secs_f64(), now_ms()?);
        let mut moved = MoveReport::default();
        let mark = |name: &str, ms: u64| (name.to_string(), ms);
        moved.marks_ms = vec![mark("copy", begin_ms), mark("frozen", copying_ms), mark("promoted", done_ms)];
        moved.shadow.seconds = seconds;
        moved.shadow.bytes_copied = bytes;
        Ok(moved)
    }
}

fn now_ms() -> Result<u64, CliError> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64)
}

/// A port that is free, and so is the one of the cluster's bus.
fn free_address() -> Result<SocketAddr, CliError> {
    for _ in 0..200 {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let bus = address.port().checked_add(10_000);
        if address.port() < PORT_MAX && bus.is_some_and(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return Ok(address);
        }
    }
    Err("no free pair of ports below 55,000".into())
}

/// What stands behind a name in the first of the lists that have it.
fn field(reply: &ClientReply, name: &str) -> Option<String> {
    let ClientReply::Array(items) = reply else { return None };
    let text = |item: &ClientReply| match item {
        ClientReply::Bulk(Some(text)) => Some(String::from_utf8_lossy(text).into_owned()),
        ClientReply::Simple(text) => Some(text.clone()),
        _ => None,
    };
    let own = items.chunks(2).find(|pair| text(&pair[0]).as_deref() == Some(name));
    own.and_then(|pair| text(pair.get(1)?)).or_else(|| items.iter().find_map(|item| field(item, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_found_in_lists_of_lists() {
        let text = |text: &str| ClientReply::Bulk(Some(text.to_string().into()));
        let one = |state: &str| ClientReply::Array(["name", "x", "state", state].map(text).to_vec());
        let reply = ClientReply::Array(vec![one("snapshotting"), one("success")]);
        assert_eq!(field(&reply, "state").as_deref(), Some("snapshotting"));
        assert_eq!(field(&reply, "nothing"), None);
        assert_eq!(Rival::Valkey.step("snapshotting"), Step::Copying);
        assert_eq!(Rival::Valkey.step("failover-paused"), Step::Switching);
        assert_eq!((Rival::Valkey.step("success"), Rival::Redis.step("completed")), (Step::Done, Step::Done));
        assert_eq!(Rival::Redis.step("failed"), Step::Failed);
    }
}
