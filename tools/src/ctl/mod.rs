//! `antumbra ctl`: shows and steers a running cluster over the Redis protocol, by any of its nodes.

mod authority;
mod moves;
mod show;
mod top;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use antumbra_net::resp::codec::ClientReply;
use antumbra_net::status::Status;
use clap::{Args, Subcommand};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client::Client;
use crate::{CliError, secret};

#[derive(Args)]
pub struct CtlOptions {
    /// Address of a node's RESP server.
    #[arg(long, default_value = "127.0.0.1:6379", global = true)]
    node: SocketAddr,
    /// Name to log in by.
    #[arg(long, requires = "password_file", global = true)]
    user: Option<String>,
    /// File with its password, which only its owner may read.
    #[arg(long, requires = "user", global = true)]
    password_file: Option<PathBuf>,
    /// Machine-readable output.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: CtlCommand,
}

#[derive(Subcommand)]
enum CtlCommand {
    /// Hosts with their loads, partitions, moves.
    Status,
    /// The partitions of the cluster.
    Partitions,
    /// Creates a partition.
    Create {
        /// Id, unique in the cluster.
        partition: u64,
        /// First slot.
        first: u16,
        /// Last slot.
        last: u16,
        /// The host that owns it.
        owner: u32,
    },
    /// Moves a partition to another host while it is served, and follows that to its end.
    Move(moves::MoveArgs),
    /// Makes two partitions of one, without a copy: slots from the one named on are the new one's.
    Split(moves::SplitArgs),
    /// Makes one partition of two neighbours on one host, without a copy.
    Merge {
        /// The one that has the lower slots, and whose id remains.
        partition: u64,
        /// The other one.
        other: u64,
    },
    /// Moves a partition back to the host that it was moved away from, and follows that to its end: of the copy that is kept
    /// there, only what has changed since is sent.
    Rollback(moves::RollbackArgs),
    /// Gives up a move or a standby: the owner serves as before.
    Abort {
        /// The partition.
        partition: u64,
    },
    /// Switches over to a shadow that is ready.
    Switch {
        /// The partition.
        partition: u64,
    },
    /// Keeps a copy of a partition on another host, current and ready to take over.
    Shadow {
        /// The partition.
        partition: u64,
        /// Where to.
        destination: u32,
        /// Writes do not wait for the copy.
        #[arg(long)]
        asynchronous: bool,
    },
    /// Lets the node that holds a copy take over from an owner that is gone. Says what may be lost; does it with --force.
    Promote {
        /// The partition.
        partition: u64,
        /// Do it.
        #[arg(long)]
        force: bool,
        /// What becomes of writes that the owner took alone, when it returns.
        #[arg(long, default_value = "lww", requires = "force")]
        policy: String,
    },
    /// Reads everything that the owner holds of a partition and checks it.
    Verify {
        /// The partition.
        partition: u64,
        /// At most so many MB per second.
        #[arg(long)]
        mb_s: Option<f64>,
    },
    /// What has happened: signals, decisions and their reasons, moves.
    Events {
        /// Goes on with what happens.
        #[arg(long)]
        follow: bool,
        /// The newest so many.
        #[arg(long, default_value_t = 50)]
        most: u64,
    },
    /// Has the node read its users and certificates anew; connections from then on use them.
    Reload,
    /// Says what the node writes to its log, or sets it.
    LogLevel {
        /// A level (error, warn, info, debug, trace), or levels for parts such as antumbra_net::shadow=debug,warn.
        filter: Option<String>,
    },
    /// Moves everything away from a host, one partition after the other, each to where the least data is.
    Drain(moves::DrainArgs),
    /// The cluster on the terminal, as it changes.
    Top,
    /// The cluster's authority, which says who is a node.
    #[command(subcommand)]
    Ca(authority::CaCommand),
}

/// A cluster as seen by one of its nodes.
struct Cluster {
    /// How others are logged in to.
    user: Option<(String, String)>,
    node: Client,
}

impl Cluster {
    async fn connect(options: &CtlOptions) -> Result<Cluster, CliError> {
        let password = options.password_file.as_deref().map(secret::read).transpose()?;
        let user = options.user.clone().zip(password);
        Ok(Cluster { node: login(options.node, user.as_ref()).await?, user })
    }

    async fn status(&self) -> Result<Status, CliError> {
        typed(self.node.json("ANTUMBRA STATUS").await?)
    }

    /// The node that owns a partition, which is the one to ask about it.
    async fn owner_of(&self, partition: u64) -> Result<Client, CliError> {
        let status = self.status().await?;
        let known = status.partitions.iter().find(|known| known.record.partition == partition);
        let owner = known.ok_or_else(|| format!("there is no partition {partition}"))?.record.owner;
        self.host(&status, owner).await
    }

    async fn host(&self, status: &Status, host: u32) -> Result<Client, CliError> {
        let known = status.hosts.iter().find(|known| known.host == host);
        let address = &known.ok_or_else(|| format!("host {host} is not known"))?.resp;
        let address = address.parse().map_err(|_| {
            format!("where host {host} is is not known, since its lease has lapsed: start it, or mend its link to etcd")
        })?;
        login(address, self.user.as_ref()).await
    }
}

async fn login(address: SocketAddr, user: Option<&(String, String)>) -> Result<Client, CliError> {
    let client = Client::connect(address).await?;
    if let Some((name, password)) = user
        && let ClientReply::Error(what) = client.call(&[b"AUTH", name.as_bytes(), password.as_bytes()]).await?
    {
        return Err(format!("{address}: {what}").into());
    }
    Ok(client)
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, CliError> {
    serde_json::from_value(value).map_err(|cause| {
        format!("the node's answer is not understood ({cause}): is it of another release than this command?").into()
    })
}

/// Runs `antumbra ctl`.
pub fn run(options: CtlOptions) -> Result<ExitCode, CliError> {
    if let CtlCommand::Ca(command) = &options.command {
        return authority::run(command).map(|()| ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let cluster = Cluster::connect(&options).await?;
        command(&cluster, &options).await
    })
}

async fn command(cluster: &Cluster, options: &CtlOptions) -> Result<ExitCode, CliError> {
    let json = options.json;
    match &options.command {
        CtlCommand::Status => {
            let status = cluster.status().await?;
            show::print(json, &status, show::status)?;
        }
        CtlCommand::Partitions => {
            let status = cluster.status().await?;
            show::print(json, &status.partitions, |partitions| show::partitions(partitions))?;
        }
        CtlCommand::Create { partition, first, last, owner } => {
            let words = format!("ANTUMBRA CREATE {partition} {first} {last} {owner}");
            let record = cluster.node.json(&words).await?;
            show::print(json, &record, |_| format!("partition {partition}: slots {first}-{last} on host {owner}\n"))?;
        }
        CtlCommand::Move(args) => return moves::run(cluster, args, json).await,
        CtlCommand::Split(args) => return moves::split(cluster, args, json).await,
        CtlCommand::Merge { partition, other } => {
            let owner = cluster.owner_of(*partition).await?;
            let record = owner.json(&format!("ANTUMBRA MERGE {partition} {other}")).await?;
            show::print(json, &record, |record| format!("{}\n", show::reshaped(record)))?;
        }
        CtlCommand::Rollback(args) => return moves::roll_back(cluster, args, json).await,
        CtlCommand::Abort { partition } => {
            cluster.owner_of(*partition).await?.command(&format!("ANTUMBRA ABORT {partition}")).await?;
            done(json, &format!("the move of partition {partition} is given up"))?;
        }
        CtlCommand::Switch { partition } => {
            cluster.owner_of(*partition).await?.command(&format!("ANTUMBRA SWITCH {partition}")).await?;
            done(json, &format!("partition {partition} is switched over as soon as its shadow is ready"))?;
        }
        CtlCommand::Shadow { partition, destination, asynchronous } => {
            let how = if *asynchronous { " ASYNC" } else { "" };
            let words = format!("ANTUMBRA STANDBY {partition} {destination}{how}");
            cluster.owner_of(*partition).await?.command(&words).await?;
            done(json, &format!("a copy of partition {partition} is kept on host {destination}"))?;
        }
        CtlCommand::Promote { partition, force, policy } => {
            let words = if *force {
                format!("ANTUMBRA PROMOTE {partition} FORCE POLICY {policy}")
            } else {
                format!("ANTUMBRA PROMOTE {partition}")
            };
            let said = cluster.node.json(&words).await?;
            show::print(json, &said, |said| serde_json::to_string_pretty(said).unwrap_or_default() + "\n")?;
        }
        CtlCommand::Verify { partition, mb_s } => return verify(cluster, *partition, *mb_s, json).await,
        CtlCommand::Events { follow, most } => show::events(cluster, *follow, *most, json).await?,
        CtlCommand::Reload => {
            let reloaded = cluster.node.json("ANTUMBRA RELOAD").await?;
            show::print(json, &reloaded, |reloaded| {
                let read = reloaded.as_object().into_iter().flatten().filter_map(|(_, file)| file.as_str());
                read.map(|file| format!("read anew: {file}\n")).collect()
            })?;
        }
        CtlCommand::LogLevel { filter } => {
            let words =
                filter.as_ref().map_or("ANTUMBRA LOGLEVEL".into(), |filter| format!("ANTUMBRA LOGLEVEL {filter}"));
            let level = cluster.node.json(&words).await?;
            show::print(json, &level, |level| format!("{}\n", level["level"].as_str().unwrap_or_default()))?;
        }
        CtlCommand::Drain(args) => return moves::drain(cluster, args, json).await,
        CtlCommand::Top => top::run(cluster).await?,
        CtlCommand::Ca(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn done(json: bool, what: &str) -> Result<(), CliError> {
    show::print(json, &serde_json::json!({ "done": what }), |_| format!("{what}\n"))
}

/// Fails when there is damage.
async fn verify(cluster: &Cluster, partition: u64, mb_s: Option<f64>, json: bool) -> Result<ExitCode, CliError> {
    let owner = cluster.owner_of(partition).await?;
    let rate = mb_s.map_or_else(String::new, |rate| format!(" {rate}"));
    let bar = indicatif::ProgressBar::new_spinner().with_message(format!("reading partition {partition}"));
    bar.enable_steady_tick(Duration::from_millis(120));
    let report = owner.json(&format!("ANTUMBRA SCRUB {partition}{rate}")).await?;
    bar.finish_and_clear();
    let damage = report["damage"].as_array().map_or(0, Vec::len);
    show::print(json, &report, |report| {
        let mut text = format!(
            "partition {partition}: {} tables, {} blocks, {} records, {}: {}\n",
            report["tables"],
            report["blocks"],
            report["records"],
            crate::show::size(report["bytes"].as_u64().unwrap_or_default()),
            if damage == 0 { "sound".to_string() } else { format!("{damage} damaged") }
        );
        for line in report["damage"].as_array().into_iter().flatten() {
            text += &format!("  {}\n", line.as_str().unwrap_or_default());
        }
        text
    })?;
    Ok(if damage == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
