//! A way to a server that can be cut, and that can lose what the server answers.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

const WHOLE: u8 = 0;
const CUT: u8 = 1;
const MUTE: u8 = 2;

pub struct Relay {
    pub address: SocketAddr,
    state: Arc<AtomicU8>,
    /// The request with these bytes is the last one that is answered no more.
    needle: Arc<Mutex<Vec<u8>>>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    pub fn start(to: SocketAddr) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (state, streams) = (Arc::<AtomicU8>::default(), Arc::<Mutex<Vec<TcpStream>>>::default());
        let (seen, open) = (Arc::clone(&state), Arc::clone(&streams));
        let needle = Arc::<Mutex<Vec<u8>>>::default();
        let wanted = Arc::clone(&needle);
        std::thread::spawn(move || {
            for front in listener.incoming().flatten() {
                if seen.load(Ordering::SeqCst) == CUT {
                    continue;
                }
                let Ok(back) = TcpStream::connect(to) else {
                    continue;
                };
                open.lock().unwrap().extend([front.try_clone().unwrap(), back.try_clone().unwrap()]);
                let pair = (front.try_clone().unwrap(), back.try_clone().unwrap());
                let (mutes, wanted) = (Arc::clone(&seen), Arc::clone(&wanted));
                let looks = move |bytes: &[u8]| {
                    let needle = wanted.lock().unwrap();
                    if !needle.is_empty() && bytes.windows(needle.len()).any(|part| part == needle.as_slice()) {
                        mutes.store(MUTE, Ordering::SeqCst);
                    }
                    true
                };
                std::thread::spawn(move || carry(front, back, looks));
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || carry(pair.1, pair.0, |_| seen.load(Ordering::SeqCst) != MUTE));
            }
        });
        Relay { address, state, needle, streams }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends all connections and takes no more.
    pub fn cut(&self) {
        self.state.store(CUT, Ordering::SeqCst);
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// The next request that has these bytes arrives; neither it nor any after it is answered.
    pub fn mute_at(&self, needle: &str) {
        *self.needle.lock().unwrap() = needle.into();
    }

    pub fn is_mute(&self) -> bool {
        self.state.load(Ordering::SeqCst) == MUTE
    }

    /// From now on connections carry both ways. What was lost is lost: those that lost something are closed.
    pub fn mend(&self) {
        self.needle.lock().unwrap().clear();
        self.cut();
        self.state.store(WHOLE, Ordering::SeqCst);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, carries: impl Fn(&[u8]) -> bool) {
    let mut bytes = [0; 16 << 10];
    while let Ok(read) = from.read(&mut bytes) {
        if read == 0 || carries(&bytes[..read]) && to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
