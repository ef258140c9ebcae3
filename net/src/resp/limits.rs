//! What a server's clients may take, and the memory that they have together.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Limits of a server. What no field names is a constant beside the code that keeps it; `net/docs/resp.md` has them all.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections of all shards; more are refused.
    pub connections_max: usize,
    /// A connection that has been silent for longer is closed; `None` lets it wait.
    pub idle: Option<Duration>,
    /// Bytes that the clients of one shard have in buffers, beside [`FREE_BYTES`] a connection.
    pub client_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { connections_max: 20_000, idle: None, client_bytes_max: 256 << 20 }
    }
}

/// Bytes of one connection's buffers that are not counted.
pub const FREE_BYTES: usize = 16 << 10;
/// A client that does not take its replies for so long is cut off.
pub(crate) const WRITE_STALL_MAX: Duration = Duration::from_secs(60);

/// Memory that clients share.
#[derive(Debug)]
pub(crate) struct Budget {
    used: Cell<usize>,
    max: usize,
}

impl Budget {
    pub fn new(max: usize) -> Rc<Budget> {
        Rc::new(Budget { used: Cell::new(0), max })
    }

    pub fn used(&self) -> usize {
        self.used.get()
    }
}

/// The budget has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// A share of a budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Rc<Budget>,
    bytes: usize,
}

impl Charge {
    pub fn nothing(budget: &Rc<Budget>) -> Charge {
        Charge { budget: Rc::clone(budget), bytes: 0 }
    }

    /// Makes the share this large; it stays as it was when there is no room.
    pub fn resize(&mut self, bytes: usize) -> Result<(), Full> {
        let others = self.budget.used.get() - self.bytes;
        if bytes > self.bytes && others + bytes > self.budget.max {
            return Err(Full);
        }
        self.budget.used.set(others + bytes);
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.set(self.budget.used.get() - self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charge_beyond_the_budget_is_refused_and_given_back() {
        let budget = Budget::new(100);
        let mut first = Charge::nothing(&budget);
        let mut second = Charge::nothing(&budget);
        assert_eq!(first.resize(60), Ok(()));
        assert_eq!(second.resize(41), Err(Full));
        assert_eq!(second.resize(40), Ok(()));
        assert_eq!(budget.used(), 100);
        drop(first);
        assert_eq!(budget.used(), 40);
        assert_eq!(second.resize(10), Ok(()));
        drop(second);
        assert_eq!(budget.used(), 0);
    }
}
