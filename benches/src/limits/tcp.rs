//! TCP over the loopback: bandwidth of one connection, and the time of a round trip.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::local::median;

/// Bytes of a write.
const CHUNK_BYTES: usize = 256 << 10;

/// Measures both, each for about `time`.
pub(super) fn measure(time: Duration) -> Result<Vec<(&'static str, &'static str, f64)>> {
    let measured = bandwidth(time).and_then(|bytes| Ok((bytes, round_trip_us(time)?)));
    let (bytes_per_second, p50_us) = measured.map_err(|cause| Error::io("loopback TCP", cause))?;
    Ok(vec![("one connection", "MB/s", bytes_per_second / 1e6), ("round trip of one byte, p50", "us", p50_us)])
}

/// Both ends of a new connection.
fn connected() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

fn bandwidth(time: Duration) -> std::io::Result<f64> {
    let (mut near, mut far) = connected()?;
    let reader = std::thread::spawn(move || {
        let (mut buffer, mut bytes) = (vec![0; CHUNK_BYTES], 0_u64);
        loop {
            match far.read(&mut buffer) {
                Ok(0) => return Ok(bytes),
                Ok(read) => bytes += read as u64,
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
    });
    let (chunk, begin) = (vec![0x5a; CHUNK_BYTES], Instant::now());
    while begin.elapsed() < time {
        near.write_all(&chunk)?;
    }
    drop(near);
    let bytes = reader.join().map_err(|_| std::io::Error::other("the reader panicked"))??;
    Ok(bytes as f64 / begin.elapsed().as_secs_f64())
}

fn round_trip_us(time: Duration) -> std::io::Result<f64> {
    let (mut near, mut far) = connected()?;
    let echo = std::thread::spawn(move || {
        let mut byte = [0];
        // The other end closes when it has measured enough.
        while far.read_exact(&mut byte).is_ok() && far.write_all(&byte).is_ok() {}
    });
    let (begin, mut trips) = (Instant::now(), Vec::new());
    while begin.elapsed() < time {
        let (mut byte, sent) = ([1], Instant::now());
        near.write_all(&byte)?;
        near.read_exact(&mut byte)?;
        trips.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    drop(near);
    echo.join().map_err(|_| std::io::Error::other("the echo panicked"))?;
    Ok(median(trips))
}
