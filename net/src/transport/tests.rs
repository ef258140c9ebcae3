//! Two real planes, and a relay between them that can lead to another process.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use antumbra_engine::types::HostId;
use tokio::sync::mpsc;

use crate::tls::{Authority, Identity};

use super::plane::CONNECT_TIMEOUT;
use super::*;

const LOCALHOST: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn plane(identity: &Path, handler: Handler) -> Plane {
    let config = PlaneConfig {
        name: "test",
        listen: SocketAddr::from(LOCALHOST),
        identity: Identity::load(identity).unwrap(),
        class: SchedulingClass::Normal,
        versions: WireVersions::default(),
        window_bytes: 1 << 20,
    };
    Plane::start(config, handler).unwrap()
}

/// A plane that reports what each stream brought.
fn collecting(identity: &Path) -> (Plane, mpsc::UnboundedReceiver<Vec<u8>>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let handler: Handler = Arc::new(move |mut incoming| {
        let sender = sender.clone();
        Box::pin(async move {
            if let Ok(bytes) = incoming.recv.read_to_end(1 << 20).await {
                let _ = sender.send(bytes);
            }
        })
    });
    (plane(identity, handler), receiver)
}

/// A plane that answers each call with its own name.
fn answering(identity: &Path, name: &'static str) -> Plane {
    let handler: Handler = Arc::new(move |incoming| {
        Box::pin(async move {
            let _ = serve_call(incoming, |_| async { name.as_bytes().to_vec() }).await;
        })
    });
    plane(identity, handler)
}

/// Passes packets on to wherever it leads now, and the answers back.
struct Relay {
    address: SocketAddr,
    leads_to: Arc<Mutex<Option<SocketAddr>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Relay {
    fn start() -> Relay {
        let front = UdpSocket::bind(SocketAddr::from(LOCALHOST)).unwrap();
        let address = front.local_addr().unwrap();
        let leads_to = Arc::<Mutex<Option<SocketAddr>>>::default();
        let stop = Arc::<AtomicBool>::default();
        let thread = std::thread::spawn({
            let (leads_to, stop) = (Arc::clone(&leads_to), Arc::clone(&stop));
            move || pass_on(&front, &leads_to, &stop)
        });
        Relay { address, leads_to, stop, thread: Some(thread) }
    }

    fn lead_to(&self, address: Option<SocketAddr>) {
        *self.leads_to.lock().unwrap() = address;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn pass_on(front: &UdpSocket, leads_to: &Mutex<Option<SocketAddr>>, stop: &AtomicBool) {
    front.set_nonblocking(true).unwrap();
    let (mut backs, mut client) = (HashMap::<SocketAddr, UdpSocket>::new(), None);
    let mut packet = [0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let mut idle = true;
        let target = *leads_to.lock().unwrap();
        if let Ok((len, from)) = front.recv_from(&mut packet) {
            (client, idle) = (Some(from), false);
            if let Some(target) = target {
                let back = backs.entry(target).or_insert_with(|| {
                    let back = UdpSocket::bind(SocketAddr::from(LOCALHOST)).unwrap();
                    back.set_nonblocking(true).unwrap();
                    back
                });
                let _ = back.send_to(&packet[..len], target);
            }
        }
        if let Some(back) = target.and_then(|target| backs.get(&target))
            && let Ok(len) = back.recv(&mut packet)
            && let Some(client) = client
        {
            idle = false;
            let _ = front.send_to(&packet[..len], client);
        }
        if idle {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// What a host wrote into a connection whose peer had restarted was lost, though every call had succeeded.
#[test]
fn stream_to_a_peer_that_has_restarted_is_not_delivered_and_the_next_one_is() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open_or_create(&dir.path().join("ca")).unwrap();
    let identities = [1, 2].map(|host| dir.path().join(format!("host-{host}")));
    for (host, identity) in [1, 2].into_iter().zip(&identities) {
        authority.issue(HostId(host), identity).unwrap();
    }
    let ours = plane(&identities[0], Arc::new(|_| Box::pin(async {})));
    let (before, mut received_before) = collecting(&identities[1]);
    let relay = Relay::start();
    relay.lead_to(Some(before.handle().local_addr()));

    let handle = ours.handle();
    let address = relay.address;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let open = || handle.open_uni(address, HostId(2), StreamKind::Bulk);
    runtime.block_on(async {
        let mut stream = open().await.unwrap();
        stream.write_all(b"first").await.unwrap();
        stream.finish().unwrap();
        stream.delivered().await.unwrap();
        assert_eq!(received_before.recv().await.unwrap(), b"first");

        relay.lead_to(None);
        let mut stream = open().await.unwrap();
        stream.write_all(b"lost").await.unwrap();
        stream.finish().unwrap();
        let (after, mut received_after) = collecting(&identities[1]);
        relay.lead_to(Some(after.handle().local_addr()));
        let cause = stream.delivered().await.unwrap_err();
        assert!(cause.to_string().contains("connection lost"), "{cause}");

        let mut stream = open().await.unwrap();
        stream.write_all(b"again").await.unwrap();
        stream.finish().unwrap();
        stream.delivered().await.unwrap();
        assert_eq!(received_after.recv().await.unwrap(), b"again");
        assert!(received_before.try_recv().is_err());
    });
}

#[test]
fn call_to_a_peer_that_has_restarted_fails_unless_it_may_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open_or_create(&dir.path().join("ca")).unwrap();
    authority.issue(HostId(1), &dir.path().join("one")).unwrap();
    authority.issue(HostId(2), &dir.path().join("two")).unwrap();
    let ours = plane(&dir.path().join("one"), Arc::new(|_| Box::pin(async {})));
    let relay = Relay::start();
    let (address, handle, timeout) = (relay.address, ours.handle(), Duration::from_secs(3));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let restart = |name| {
        let life = answering(&dir.path().join("two"), name);
        relay.lead_to(Some(life.handle().local_addr()));
        life
    };
    let ask_as = |may_repeat| {
        let (host, kind) = (HostId(2), StreamKind::Forward);
        let request = Call { peer: address, host, kind, request: b"who", timeout, may_repeat };
        runtime.block_on(call(&handle, request))
    };
    let (ask, ask_again) = (|| ask_as(false), || ask_as(true));

    let _first = restart("first");
    assert_eq!(ask().unwrap(), b"first");
    let _second = restart("second");
    let cause = ask().unwrap_err();
    assert!(matches!(cause, crate::Error::Unknown { .. }), "{cause}");
    assert_eq!(ask().unwrap(), b"second");
    let _third = restart("third");
    assert_eq!(ask_again().unwrap(), b"third");
}

#[tokio::test]
async fn peer_that_is_gone_keeps_nobody_from_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open_or_create(&dir.path().join("ca")).unwrap();
    authority.issue(HostId(1), &dir.path().join("one")).unwrap();
    authority.issue(HostId(2), &dir.path().join("two")).unwrap();
    let (one, _) = collecting(&dir.path().join("one"));
    let (two, mut brought) = collecting(&dir.path().join("two"));
    let silent = UdpSocket::bind(SocketAddr::from(LOCALHOST)).unwrap();
    let gone = silent.local_addr().unwrap();
    let began = std::time::Instant::now();
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let one = one.handle();
            tokio::spawn(async move { one.open_uni(gone, HostId(3), StreamKind::Probe).await.map(drop) })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut stream = one.handle().open_uni(two.handle().local_addr(), HostId(2), StreamKind::Probe).await.unwrap();
    stream.write_all(b"past it").await.unwrap();
    stream.finish().unwrap();
    assert_eq!(brought.recv().await.unwrap(), b"past it");
    assert!(began.elapsed() < CONNECT_TIMEOUT, "{:?}", began.elapsed());
    for waits in waiting {
        assert!(waits.await.unwrap().is_err());
    }
    assert!(began.elapsed() < CONNECT_TIMEOUT * 2, "all by one try: {:?}", began.elapsed());
}

#[tokio::test]
async fn renewed_certificate_is_shown_to_new_connections_only() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open_or_create(&dir.path().join("ca")).unwrap();
    let path = |name: &str| dir.path().join(name);
    authority.issue(HostId(1), &path("one")).unwrap();
    authority.issue(HostId(2), &path("two")).unwrap();
    let (one, _) = collecting(&path("one"));
    let (two, mut brought) = collecting(&path("two"));
    let (one, two) = (one.handle(), two.handle());
    let send = async |text: &'static [u8]| {
        let mut stream = one.open_uni(two.local_addr(), HostId(2), StreamKind::Probe).await.unwrap();
        stream.write_all(text).await.unwrap();
        stream.finish().unwrap();
    };
    send(b"before").await;
    assert_eq!(brought.recv().await.unwrap(), b"before");
    let first = one.shown_by(two.local_addr(), HostId(2)).await.unwrap();
    assert_eq!(first, std::fs::read(path("two/host.der")).unwrap());

    authority.issue(HostId(2), &path("two")).unwrap();
    let identity = Identity::load(&path("two")).unwrap();
    assert_eq!(one.shown_by(two.local_addr(), HostId(2)).await.unwrap(), first, "nothing happens unasked");
    two.renew(&identity).unwrap();
    assert_eq!(one.shown_by(two.local_addr(), HostId(2)).await.unwrap(), std::fs::read(path("two/host.der")).unwrap());
    send(b"on the old connection").await;
    assert_eq!(brought.recv().await.unwrap(), b"on the old connection");
    // It shows it to those that it connects to, too.
    assert_eq!(two.shown_by(one.local_addr(), HostId(1)).await.unwrap(), std::fs::read(path("one/host.der")).unwrap());
}

#[test]
fn certificate_of_another_host_or_authority_is_not_read_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let authority = Authority::open_or_create(&path("ca")).unwrap();
    authority.issue(HostId(1), &path("host")).unwrap();
    let identity = Identity::load(&path("host")).unwrap();
    identity.read_anew().unwrap();
    let refused = || identity.read_anew().unwrap_err().to_string();
    Authority::open_or_create(&path("other-ca")).unwrap().issue(HostId(1), &path("host")).unwrap();
    assert!(refused().contains("another authority"), "{}", refused());
    authority.issue(HostId(7), &path("host")).unwrap();
    assert!(refused().contains("it is for host 7"), "{}", refused());
    authority.issue(HostId(1), &path("host")).unwrap();
    let key = path("host/host.key.der");
    authority.issue(HostId(1), &path("elsewhere")).unwrap();
    std::fs::copy(path("elsewhere/host.key.der"), &key).unwrap();
    identity.read_anew().unwrap_err();
}
