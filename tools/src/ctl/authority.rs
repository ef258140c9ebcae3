//! `antumbra ctl ca`: certificates without a running cluster.

use std::path::PathBuf;

use antumbra_engine::types::HostId;
use antumbra_net::tls::Authority;
use clap::Subcommand;

use crate::CliError;

#[derive(Subcommand)]
pub enum CaCommand {
    /// Creates an authority in a folder; one that is there is left as it is. Its key never leaves that folder.
    Init {
        /// The folder.
        dir: PathBuf,
    },
    /// Issues the certificate of a host into a folder, to be carried to the host as `certs` in its data folder.
    Issue {
        /// The authority's folder.
        dir: PathBuf,
        /// The host's number.
        host: u32,
        /// Where the certificate and its key go.
        out: PathBuf,
    },
}

pub fn run(command: &CaCommand) -> Result<(), CliError> {
    match command {
        CaCommand::Init { dir } => {
            Authority::open_or_create(dir)?;
            println!("authority in {}", dir.display());
        }
        CaCommand::Issue { dir, host, out } => {
            if !dir.exists() {
                return Err(format!("{}: no authority there; create it with ctl ca init", dir.display()).into());
            }
            Authority::open_or_create(dir)?.issue(HostId(*host), out)?;
            println!("certificate of host {host} in {}", out.display());
        }
    }
    Ok(())
}
