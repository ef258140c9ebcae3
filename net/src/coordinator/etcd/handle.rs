//! The handle and its thread. etcd's client lives in the tokio world; who asks may live anywhere.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use futures_channel::oneshot;
use tokio::runtime::Builder;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::LocalSet;

use crate::coordinator::health::{CoordinatorHealth, CoordinatorKind, Pulse};
use crate::coordinator::{Answer, ClusterState, Command};
use crate::coordinator::{Asking, Coordinator, Watching};
use crate::error::Error;

use super::config::EtcdConfig;
use super::decide::{self, ANSWER_MAX};
use super::follow::{self, Picture, Shown};
use super::layout::Layout;
use super::members::{Failure, Members};
use super::presence::Presence;

/// Commands under way; more wait.
const COMMANDS_MAX: usize = 64;

type Request = (Command, oneshot::Sender<crate::Result<Answer>>);

/// The coordinator in etcd. Clones share it; the host's lease ends with the last one.
#[derive(Clone, Debug)]
pub struct Etcd {
    requests: mpsc::Sender<Request>,
    watching: Watching,
    pulse: Pulse,
}

impl Etcd {
    /// Starts the thread; nothing is asked yet.
    ///
    /// # Errors
    /// [`Error::Refused`] when the configuration cannot work or there is no thread to be had.
    pub fn open(config: EtcdConfig) -> crate::Result<Etcd> {
        config.check()?;
        let refuse = |cause: std::io::Error| Error::Refused { what: format!("thread etcd: {cause}") };
        let runtime = Builder::new_current_thread().enable_all().build().map_err(refuse)?;
        let (requests, receiver) = mpsc::channel(COMMANDS_MAX);
        let (shown, watching) = watch::channel(None);
        let pulse = Pulse::new(CoordinatorKind::Etcd);
        let inside = pulse.clone();
        let run = move || LocalSet::new().block_on(&runtime, serve(config, receiver, shown, inside));
        std::thread::Builder::new().name("etcd".into()).spawn(run).map_err(refuse)?;
        Ok(Etcd { requests, watching, pulse })
    }
}

impl Coordinator for Etcd {
    fn ask(&self, command: Command) -> Asking<'_> {
        let gone = || Error::Unknown { what: "the thread of etcd's client has ended".into() };
        Box::pin(async move {
            let (sender, answer) = oneshot::channel();
            self.requests.send((command, sender)).await.map_err(|_| gone())?;
            answer.await.unwrap_or_else(|_| Err(gone()))
        })
    }

    fn watching(&self) -> Option<Watching> {
        Some(self.watching.clone())
    }

    fn health(&self) -> CoordinatorHealth {
        self.pulse.health()
    }
}

/// What the thread's tasks share.
struct Inner {
    members: Members,
    layout: Layout,
    presence: Presence,
    /// What the watch has shown last.
    latest: RefCell<Picture>,
}

async fn serve(config: EtcdConfig, mut requests: mpsc::Receiver<Request>, shown: Shown, pulse: Pulse) {
    let layout = Layout::new(&config.prefix);
    let presence = Presence::new(config.lease);
    let latest = RefCell::default();
    let inner = Rc::new(Inner { members: Members::new(config, pulse), layout, presence, latest });
    let follower = Rc::clone(&inner);
    tokio::task::spawn_local(async move {
        follow::run(&follower.members, &follower.layout, &follower.latest, &shown).await;
    });
    let keeper = Rc::clone(&inner);
    tokio::task::spawn_local(async move { keeper.presence.keep(&keeper.members, &keeper.layout).await });
    let places = Arc::new(Semaphore::new(COMMANDS_MAX));
    while let Some((command, answer)) = requests.recv().await {
        let place = Arc::clone(&places).acquire_owned().await;
        let inner = Rc::clone(&inner);
        tokio::task::spawn_local(async move {
            // Whoever asked may have gone; what was asked is done all the same.
            let _ = answer.send(inner.apply(command).await.map_err(Error::from));
            drop(place);
        });
    }
    inner.presence.leave(&inner.members).await;
}

impl Inner {
    async fn apply(&self, command: Command) -> Result<Answer, Failure> {
        match command {
            Command::List => self.list().await.map(Answer::State),
            Command::Register(info) => {
                self.presence.register(&self.members, &self.layout, info).await.map(Answer::State)
            }
            command => decide::decide(&self.members, &self.layout, &self.latest, &command).await,
        }
    }

    async fn list(&self) -> Result<ClusterState, Failure> {
        let read = async || decide::list(&self.members, &self.layout).await;
        Ok(self.members.persist(ANSWER_MAX, read).await?.0.state)
    }
}
