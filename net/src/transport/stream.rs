//! The two ends of a stream: QUIC's, or those of a simulated network.

/// Why a stream carries nothing any more.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct StreamEnded(pub(crate) String);

fn ended(cause: impl std::fmt::Display) -> StreamEnded {
    StreamEnded(cause.to_string())
}

/// The sending end. Dropped, it ends the stream behind what was written.
#[derive(Debug)]
pub enum SendStream {
    /// QUIC's.
    Quic(quinn::SendStream),
    /// A simulated one.
    #[cfg(feature = "sim")]
    Simulated(crate::sim::PipeWriter),
}

/// The receiving end. Dropped, it stops the sender.
#[derive(Debug)]
pub enum RecvStream {
    /// QUIC's.
    Quic(quinn::RecvStream),
    /// A simulated one.
    #[cfg(feature = "sim")]
    Simulated(crate::sim::PipeReader),
}

impl SendStream {
    /// Sends all of `bytes`; waits while the receiver's window is full.
    ///
    /// # Errors
    /// The connection is lost, or the receiver has stopped.
    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), StreamEnded> {
        match self {
            SendStream::Quic(stream) => stream.write_all(bytes).await.map_err(ended),
            #[cfg(feature = "sim")]
            SendStream::Simulated(stream) => stream.write_all(bytes).await,
        }
    }

    /// Ends the stream behind what was written.
    ///
    /// # Errors
    /// It has ended before.
    pub fn finish(&mut self) -> Result<(), StreamEnded> {
        match self {
            SendStream::Quic(stream) => stream.finish().map_err(ended),
            #[cfg(feature = "sim")]
            SendStream::Simulated(stream) => stream.finish(),
        }
    }

    /// Waits until the receiver has everything, or has stopped, or is lost.
    pub async fn stopped(&mut self) {
        let _ = self.delivered().await;
    }

    /// Waits until the receiver's host has everything; to be called behind [`SendStream::finish`]. What was written may
    /// be lost with its connection long after `write_all` took it.
    ///
    /// # Errors
    /// The connection is lost, or the receiver has stopped before.
    pub async fn delivered(&mut self) -> Result<(), StreamEnded> {
        match self {
            SendStream::Quic(stream) => match stream.stopped().await {
                Ok(None) => Ok(()),
                Ok(Some(code)) => Err(ended(format!("stopped by the peer: {code}"))),
                Err(cause) => Err(ended(cause)),
            },
            #[cfg(feature = "sim")]
            SendStream::Simulated(stream) => stream.delivered().await,
        }
    }
}

impl RecvStream {
    /// Fills `bytes`.
    ///
    /// # Errors
    /// The stream ends before, or the connection is lost.
    pub async fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), StreamEnded> {
        match self {
            RecvStream::Quic(stream) => stream.read_exact(bytes).await.map_err(ended),
            #[cfg(feature = "sim")]
            RecvStream::Simulated(stream) => stream.read_exact(bytes).await,
        }
    }

    /// Reads to the end of the stream, at most `max` bytes.
    ///
    /// # Errors
    /// There is more, or the connection is lost.
    pub async fn read_to_end(&mut self, max: usize) -> Result<Vec<u8>, StreamEnded> {
        match self {
            RecvStream::Quic(stream) => stream.read_to_end(max).await.map_err(ended),
            #[cfg(feature = "sim")]
            RecvStream::Simulated(stream) => stream.read_to_end(max).await,
        }
    }
}
