//! Who may change a partition's role on this host: one driver at a time (a move's source, a move's target, or the
//! reconciler).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use antumbra_engine::types::PartitionId;
use tokio::sync::Notify;

/// The claims of one host. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    held: Mutex<HashSet<PartitionId>>,
    released: Notify,
}

/// The right to change one partition's role; given back when dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    partition: PartitionId,
    inner: Arc<Inner>,
}

impl Claims {
    /// Takes the claim if nobody has it.
    pub fn try_claim(&self, partition: PartitionId) -> Option<Claim> {
        let mut held = self.inner.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert(partition).then(|| Claim { partition, inner: Arc::clone(&self.inner) })
    }

    /// Waits for the claim.
    pub async fn claim(&self, partition: PartitionId) -> Claim {
        loop {
            let released = self.inner.released.notified();
            tokio::pin!(released);
            // Registered before the look, so that a release in between is not missed.
            released.as_mut().enable();
            if let Some(claim) = self.try_claim(partition) {
                return claim;
            }
            released.await;
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.inner.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.partition);
        self.inner.released.notify_waiters();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn claim_is_exclusive_and_passes_on() {
        let claims = Claims::default();
        let first = claims.try_claim(PartitionId(1)).unwrap();
        assert!(claims.try_claim(PartitionId(1)).is_none());
        assert!(claims.try_claim(PartitionId(2)).is_some());
        let waiting = tokio::spawn({
            let claims = claims.clone();
            async move { claims.claim(PartitionId(1)).await }
        });
        tokio::task::yield_now().await;
        drop(first);
        let second = waiting.await.unwrap();
        assert!(claims.try_claim(PartitionId(1)).is_none());
        drop(second);
        assert!(claims.try_claim(PartitionId(1)).is_some());
    }
}
