//! Open files of a simulated machine, as the engine's file types wrap them.

use std::fs::TryLockError;
use std::future::{Future, pending};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::disk::{FlightId, HandleId};
use super::fault::Faults;
use super::tasks::Alarm;
use super::{Machine, Op};

/// A direct file: reads and writes take their time.
#[derive(Debug)]
pub(crate) struct SimFile {
    /// Which machine: the files must be able to go where real ones go, another thread for instance.
    machine: u64,
    handle: HandleId,
    name: String,
}

/// A file read and written in order through the page cache.
#[derive(Debug)]
pub(crate) struct SimStream {
    file: SimFile,
    position: u64,
}

impl SimFile {
    pub(super) fn new(machine: &Rc<Machine>, handle: HandleId, name: String) -> SimFile {
        SimFile { machine: machine.id, handle, name }
    }

    fn machine(&self) -> io::Result<Rc<Machine>> {
        let machine = super::current().filter(|machine| machine.id == self.machine);
        machine.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    pub fn try_lock(&self) -> io::Result<bool> {
        let machine = self.machine()?;
        machine.step(Op::Lock, 0, 0)?;
        machine.disk.borrow_mut().try_lock(self.handle)
    }

    /// Up to `len` bytes at `offset`.
    pub async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let machine = self.machine()?;
        let delay_ns = machine.draw(|random| if random.bool() { 0 } else { random.u64(10_000..200_000) });
        let delay_ns = delay_ns * machine.faults.borrow().times();
        if delay_ns > 0 {
            machine.sleep(Duration::from_nanos(delay_ns)).await;
        }
        if machine.step(Op::Read, offset, len as u64).is_err() {
            return pending().await;
        }
        let (fails, short) = {
            let faults = machine.faults.borrow();
            machine
                .draw(|random| (Faults::happens(faults.read_error, random), Faults::happens(faults.short_read, random)))
        };
        if fails {
            return Err(machine.injected(libc::EIO));
        }
        let len = if short && len > 1 { machine.draw(|random| random.usize(1..len)) } else { len };
        machine.disk.borrow_mut().read(self.handle, offset, len)
    }

    /// Writes `bytes` at `offset`; on the device when it returns if the file was opened so.
    /// Cancel: the write lands all the same.
    pub async fn write_at(&self, offset: u64, bytes: Vec<u8>) -> io::Result<usize> {
        let machine = self.machine()?;
        if machine.step(Op::Write, offset, bytes.len() as u64).is_err() {
            return pending().await;
        }
        let grows = offset + bytes.len() as u64 > machine.disk.borrow_mut().len(self.handle)?;
        let fate = machine.draw(|random| machine.faults.borrow().fate(&self.name, grows, random));
        machine.count_fate(fate);
        let flight = machine.disk.borrow_mut().launch(self.handle, offset, bytes, fate)?;
        let delay_ns = machine.draw(|random| match random.u8(..) {
            0..4 => random.u64(5_000_000..30_000_000),
            _ => random.u64(30_000..300_000),
        });
        let delay_ns = delay_ns * machine.faults.borrow().times();
        machine.tasks.set(machine.now_ns.get() + delay_ns, Alarm::Land(flight));
        Landing { machine, flight }.await
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        // The runtime closes a dropped file a little later.
        if let Ok(machine) = self.machine() {
            let delay_ns = machine.draw(|random| random.u64(0..100_000));
            machine.tasks.set(machine.now_ns.get() + delay_ns, Alarm::Close(self.handle));
        }
    }
}

/// Waits until a write has landed.
struct Landing {
    machine: Rc<Machine>,
    flight: FlightId,
}

impl Future for Landing {
    type Output = io::Result<usize>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut disk = self.machine.disk.borrow_mut();
        let Some(flight) = disk.flight(self.flight) else {
            return Poll::Pending;
        };
        flight.waker = Some(context.waker().clone());
        flight.result.take().map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.machine.disk.borrow_mut().abandon_flight(self.flight);
    }
}

impl SimStream {
    pub(super) fn new(file: SimFile) -> SimStream {
        SimStream { file, position: 0 }
    }

    pub fn read_to_end(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        let machine = self.file.machine()?;
        machine.step(Op::Read, self.position, 0)?;
        if machine.draw(|random| Faults::happens(machine.faults.borrow().read_error, random)) {
            return Err(machine.injected(libc::EIO));
        }
        let mut disk = machine.disk.borrow_mut();
        let len = disk.len(self.file.handle)?.saturating_sub(self.position);
        let found = disk.read(self.file.handle, self.position, len as usize)?;
        self.position += len;
        bytes.extend_from_slice(&found);
        Ok(found.len())
    }

    pub fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let machine = self.file.machine()?;
        machine.step(Op::Write, self.position, bytes.len() as u64)?;
        let end = self.position + bytes.len() as u64;
        let grows = end > machine.disk.borrow_mut().len(self.file.handle)?;
        if machine.faults.borrow().full && grows {
            return Err(machine.injected(libc::ENOSPC));
        }
        if machine.draw(|random| Faults::happens(machine.faults.borrow().write_error, random)) {
            let part = machine.draw(|random| random.usize(0..=bytes.len()));
            machine.disk.borrow_mut().write_cached(self.file.handle, self.position, &bytes[..part])?;
            self.position += part as u64;
            return Err(machine.injected(libc::EIO));
        }
        machine.disk.borrow_mut().write_cached(self.file.handle, self.position, bytes)?;
        self.position = end;
        Ok(())
    }

    pub fn sync(&self) -> io::Result<()> {
        let machine = self.file.machine()?;
        machine.step(Op::Sync, 0, 0)?;
        if machine.draw(|random| Faults::happens(machine.faults.borrow().sync_error, random)) {
            return Err(machine.injected(libc::EIO));
        }
        machine.disk.borrow_mut().sync(self.file.handle)
    }

    pub fn try_lock(&self) -> Result<(), TryLockError> {
        match self.file.try_lock() {
            Ok(true) => Ok(()),
            Ok(false) => Err(TryLockError::WouldBlock),
            Err(cause) => Err(TryLockError::Error(cause)),
        }
    }
}
