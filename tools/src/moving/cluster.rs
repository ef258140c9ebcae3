//! Two node processes.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::CliError;
use crate::client::Client;

use super::cpus::Cpus;

/// How nodes are started.
#[derive(Clone, Copy, Debug)]
pub struct NodeConfig {
    pub segment_kib: u64,
    pub memory_mib: u64,
    /// Length of an access window.
    pub window: Duration,
}

/// A running node.
pub struct Node {
    child: Child,
    /// Where clients reach it.
    pub resp: SocketAddr,
}

impl Node {
    /// Its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the nodes, each on its CPUs: the first one serves the coordinator.
pub fn start(dir: &Path, config: NodeConfig, [on_first, on_second]: [Cpus; 2]) -> Result<Vec<Node>, CliError> {
    let control = free_udp()?;
    let first = start_node(dir, config, on_first, 1, control, None)?;
    let second = start_node(dir, config, on_second, 2, free_udp()?, Some(format!("1@{control}")))?;
    Ok(vec![first, second])
}

fn start_node(
    dir: &Path,
    config: NodeConfig,
    cpus: Cpus,
    host: u32,
    control: SocketAddr,
    coordinator: Option<String>,
) -> Result<Node, CliError> {
    let resp = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["node", "--host", &host.to_string(), "--dir"])
        .arg(dir.join(format!("node-{host}")))
        .arg("--ca")
        .arg(dir.join("ca"))
        .args(["--resp", &resp.to_string(), "--control", &control.to_string(), "--bulk", &free_udp()?.to_string()])
        .args(["--segment-kib", &config.segment_kib.to_string(), "--memory-mib", &config.memory_mib.to_string()])
        .args(["--window-ms", &config.window.as_millis().to_string()])
        .stdout(Stdio::piped());
    if let Some(coordinator) = coordinator {
        command.args(["--coordinator", &coordinator]);
    }
    cpus.confine(&mut command);
    let mut child = command.spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    let node = Node { child, resp };
    if line.starts_with("READY") {
        Ok(node)
    } else {
        Err(format!("node {host} did not start; its message is above").into())
    }
}

fn free_udp() -> Result<SocketAddr, CliError> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?)
}

/// The partition that is moved: one hash slot.
pub const PARTITION: u64 = 1;

/// Creates the partitions and waits until both nodes know them; the first node owns [`PARTITION`] and the slots below it.
pub async fn create_partitions(clients: &[Client], slot: u16) -> Result<(), CliError> {
    let create = |id: u64, first: u16, last: u16, owner: u32| format!("ANTUMBRA CREATE {id} {first} {last} {owner}");
    let mut commands = vec![create(PARTITION, slot, slot, 1)];
    if slot > 0 {
        commands.push(create(2, 0, slot - 1, 1));
    }
    if slot < 16_383 {
        commands.push(create(3, slot + 1, 16_383, 2));
    }
    for command in commands {
        clients[0].json(&command).await?;
    }
    for client in clients {
        for _ in 0..100 {
            let antumbra_net::resp::codec::ClientReply::Bulk(Some(info)) = client.command("CLUSTER INFO").await? else {
                return Err("CLUSTER INFO: no text".into());
            };
            if String::from_utf8_lossy(&info).contains("cluster_state:ok") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    // Routes are known; the partitions are created with the next look at the table.
    tokio::time::sleep(Duration::from_millis(600)).await;
    Ok(())
}
