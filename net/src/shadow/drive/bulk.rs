//! One segment's stream, at either end.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use antumbra_engine::PartitionHandle;
use antumbra_engine::partition::{Base, CheckedImage};
use antumbra_engine::record::Record;
use antumbra_engine::table::{decode_records, encode_records};
use antumbra_engine::types::{HostId, Lsn, SegmentId};

use crate::error::{Error, Result};
use crate::shadow::codec;
use crate::shadow::frame::{self, Columns, FrameContext, HEADER_LEN, PAYLOAD_MAX};
use crate::shadow::message;
use crate::shadow::segment::{Announced, Body, DeltaHead, IMAGE_MAX, ImageHead, KIND_DELTA, KIND_IMAGE};
use crate::throttle::Throttle;
use crate::time;
use crate::transport::{PlaneHandle, RecvStream, SendStream, StreamKind, aside, read_exact_limited};

use super::lock;

/// For how long a segment is sent again; a copy that makes no progress is given up a little later.
const RESEND_MAX: Duration = Duration::from_secs(10);
const RESEND_WAIT: Duration = Duration::from_millis(50);

/// A throttle shared by the streams of one move.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    throttle: Arc<Mutex<Throttle>>,
    sent_bytes: Arc<AtomicU64>,
    started: Instant,
    /// What is sent counts against the cap without waiting for it.
    urgent: bool,
}

impl Pace {
    pub fn new(rate: Option<u64>) -> Pace {
        let throttle = Arc::new(Mutex::new(Throttle::new(rate)));
        Pace { throttle, sent_bytes: Arc::default(), started: time::now(), urgent: false }
    }

    /// Changes the cap of all who share it.
    pub fn set_rate(&self, rate: Option<u64>) {
        lock(&self.throttle).set_rate(rate);
    }

    /// Bytes handed to the transport so far.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// The same cap for a sender that goes first: the others wait for what it sends.
    pub fn without_waiting(&self) -> Pace {
        Pace { urgent: true, ..self.clone() }
    }

    /// For how long bytes were there to be sent.
    pub fn wanted(&self) -> Duration {
        Duration::from_nanos(lock(&self.throttle).wanted_ns(self.now_ns()))
    }

    /// Sends bytes no faster than the cap.
    async fn send(&self, stream: &mut SendStream, bytes: &[u8]) -> Result<()> {
        let _demand = Wanting::begin(self);
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, wait) = {
                let mut throttle = lock(&self.throttle);
                let piece = rest.len().min(throttle.piece_bytes());
                (piece, throttle.admit(piece as u64, self.now_ns()))
            };
            let piece = rest.split_off(..piece).unwrap_or_default();
            // The clock of the runtime has a resolution of a millisecond; the account makes up for late wake-ups.
            if wait >= 1_000_000 && !self.urgent {
                time::sleep(Duration::from_nanos(wait)).await;
            }
            stream.write_all(piece).await.map_err(|cause| Error::link("peer", cause))?;
            self.sent_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Nanoseconds on a clock that leaves room for the burst before the start.
    fn now_ns(&self) -> u64 {
        time::since(self.started).as_nanos() as u64 + 1_000_000_000
    }
}

/// While it lives, its sender has bytes to send.
struct Wanting<'a>(&'a Pace);

impl Wanting<'_> {
    fn begin(pace: &Pace) -> Wanting<'_> {
        lock(&pace.throttle).begin_demand(pace.now_ns());
        Wanting(pace)
    }
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        lock(&self.0.throttle).end_demand(self.0.now_ns());
    }
}

/// What one segment cost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SegmentCost {
    /// Bytes that the target had from before.
    pub base: u64,
    pub image_raw: u64,
    pub image_wire: u64,
    pub delta_raw: u64,
    pub delta_wire: u64,
}

/// Where segments go.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub plane: PlaneHandle,
    pub address: SocketAddr,
    pub host: HostId,
}

/// A segment on its way. It is captured once and covered once, whatever becomes of its streams: the seal names this
/// copy.
pub(super) struct Outbound {
    partition: PartitionHandle,
    context: FrameContext,
    segment: SegmentId,
    image: Arc<Vec<u8>>,
    image_wire: Vec<u8>,
    /// The target has the image, with this digest.
    on_base: Option<OnBase>,
    delta: Option<Delta>,
}

/// A base that a target has offered for a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct OnBase {
    pub base: Base,
    pub digest: u128,
    /// What the segment takes here, about.
    pub bytes: u64,
}

/// A delta as it travels.
struct Delta {
    covered: Lsn,
    raw_len: usize,
    wire: Vec<u8>,
}

impl Outbound {
    /// Takes the segment's image, unless the target has the base that it offers.
    pub async fn capture(
        partition: PartitionHandle,
        context: FrameContext,
        segment: SegmentId,
        offered: Option<OnBase>,
    ) -> Result<Outbound> {
        let attempt = context.attempt;
        if let Some(OnBase { base, digest, .. }) = offered {
            let capture = move |partition: std::rc::Rc<antumbra_engine::Partition>| async move {
                partition.capture_on_base(attempt, segment, base, digest).await
            };
            if partition.with(capture).await? {
                let (image, image_wire, on_base) = (Arc::default(), Vec::new(), offered);
                return Ok(Outbound { partition, context, segment, image, image_wire, on_base, delta: None });
            }
            tracing::info!(%segment, "the target's base is another one: the segment travels in full");
        }
        let image = partition.with(move |partition| async move { partition.capture_image(attempt, segment).await });
        let image = Arc::new(image.await?.table);
        let image_wire = compress(&image).await?;
        Ok(Outbound { partition, context, segment, image, image_wire, on_base: None, delta: None })
    }

    /// Sends image and delta, on another stream if one is lost: a connection that the target's restart has ended takes
    /// bytes until the source hears of it. Returns once the target's host has all of it.
    pub async fn send(mut self, route: &Route, pace: &Pace) -> Result<SegmentCost> {
        let mut failing: Option<Instant> = None;
        loop {
            let cause = match self.send_once(route, pace).await {
                Err(cause @ Error::Link { .. }) => cause,
                ended => return ended,
            };
            if time::since(*failing.get_or_insert_with(time::now)) > RESEND_MAX {
                return Err(cause);
            }
            tracing::info!(%cause, segment = %self.segment, "a segment is sent again");
            time::sleep(RESEND_WAIT).await;
        }
    }

    async fn send_once(&mut self, route: &Route, pace: &Pace) -> Result<SegmentCost> {
        let (image, context) = (Arc::clone(&self.image), self.context);
        let mut stream = route.plane.open_uni(route.address, route.host, StreamKind::Bulk).await?;
        match self.on_base {
            Some(OnBase { digest, .. }) => {
                send_head(&mut stream, context, self.segment, Announced::Base(digest), pace).await?;
            }
            None => send_image(&mut stream, context, self.segment, image.len(), &self.image_wire, pace).await?,
        }
        let delta = match self.delta.take() {
            Some(delta) => delta,
            None => self.cover().await?,
        };
        let delta = self.delta.insert(delta);
        send_delta(&mut stream, context, delta, pace).await?;
        stream.finish().map_err(|cause| Error::link("peer", cause))?;
        stream.delivered().await.map_err(|cause| Error::link("peer", cause))?;
        Ok(SegmentCost {
            base: self.on_base.map_or(0, |on_base| on_base.bytes),
            image_raw: image.len() as u64,
            image_wire: self.image_wire.len() as u64,
            delta_raw: delta.raw_len as u64,
            delta_wire: delta.wire.len() as u64,
        })
    }

    async fn cover(&self) -> Result<Delta> {
        let (attempt, segment, image) = (self.context.attempt, self.segment, Arc::clone(&self.image));
        let delta =
            self.partition.with(move |partition| async move { partition.cover_segment(attempt, segment).await });
        let delta = delta.await?;
        let encode = move || {
            if delta.records.is_empty() {
                return Ok(Delta { covered: delta.covered, raw_len: 0, wire: Vec::new() });
            }
            let raw = encode_records(delta.records.iter().map(Record::view))?;
            let wire = codec::compress_against(&image, &raw)?;
            Ok::<_, Error>(Delta { covered: delta.covered, raw_len: raw.len(), wire })
        };
        aside(encode).await?
    }
}

async fn compress(image: &Arc<Vec<u8>>) -> Result<Vec<u8>> {
    let image = Arc::clone(image);
    aside(move || codec::compress(&image)).await?
}

/// Sends a segment that does not change any more.
pub(super) async fn send_whole(
    stream: &mut SendStream,
    context: FrameContext,
    segment: SegmentId,
    image: Vec<u8>,
    pace: &Pace,
) -> Result<()> {
    let image = Arc::new(image);
    let wire = compress(&image).await?;
    send_image(stream, context, segment, image.len(), &wire, pace).await?;
    send_delta(stream, context, &Delta { covered: Lsn(0), raw_len: 0, wire: Vec::new() }, pace).await
}

async fn send_image(
    stream: &mut SendStream,
    context: FrameContext,
    segment: SegmentId,
    raw_len: usize,
    wire: &[u8],
    pace: &Pace,
) -> Result<()> {
    let body = Body { raw_len, wire_len: wire.len() };
    send_head(stream, context, segment, Announced::Image(body), pace).await?;
    pace.send(stream, wire).await
}

async fn send_head(
    stream: &mut SendStream,
    context: FrameContext,
    segment: SegmentId,
    announced: Announced,
    pace: &Pace,
) -> Result<()> {
    let columns = ImageHead { segment, announced }.to_columns();
    pace.send(stream, &frame::encode(KIND_IMAGE, context, &columns)?).await
}

async fn send_delta(stream: &mut SendStream, context: FrameContext, delta: &Delta, pace: &Pace) -> Result<()> {
    let body = Body { raw_len: delta.raw_len, wire_len: delta.wire.len() };
    let columns = DeltaHead { covered: delta.covered, body }.to_columns();
    pace.send(stream, &frame::encode(KIND_DELTA, context, &columns)?).await?;
    pace.send(stream, &delta.wire).await
}

/// A segment as it arrived.
#[derive(Debug)]
pub(super) struct ReceivedSegment {
    pub context: FrameContext,
    pub segment: SegmentId,
    /// From this LSN on its records are mirrored; 0 in an image of the state at the hand-over.
    pub covered: Lsn,
    pub image: Below,
    pub delta: Vec<Record>,
}

/// What a segment's delta lies on.
#[derive(Debug)]
pub(super) enum Below {
    /// An image that has come.
    Image(CheckedImage),
    /// What this host has from before, by its digest.
    Base(u128),
}

impl Below {
    /// An image that has come; a base is one that was asked for, in an attempt alone.
    pub fn into_image(self) -> Result<CheckedImage> {
        match self {
            Below::Image(image) => Ok(image),
            Below::Base(_) => Err(Error::protocol("a base in place of an image")),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Below::Image(image) => image.table(),
            Below::Base(_) => &[],
        }
    }
}

/// Reads one segment's stream.
pub(super) async fn receive_segment(stream: &mut RecvStream) -> Result<ReceivedSegment> {
    let (context, columns) = read_frame(stream, KIND_IMAGE).await?;
    let ImageHead { segment, announced } = ImageHead::from_columns(&columns)?;
    let image = match announced {
        Announced::Base(digest) => Below::Base(digest),
        Announced::Image(Body { raw_len, wire_len }) => {
            let wire = read_exact_limited(stream, wire_len, IMAGE_MAX).await?;
            let check = move || Ok::<_, Error>(CheckedImage::check(codec::decompress(&wire, raw_len)?)?);
            Below::Image(aside(check).await??)
        }
    };
    let (_, columns) = read_frame(stream, KIND_DELTA).await?;
    let DeltaHead { covered, body: Body { raw_len, wire_len } } = DeltaHead::from_columns(&columns)?;
    let wire = read_exact_limited(stream, wire_len, IMAGE_MAX).await?;
    // Dropped before its end, the stream would look stopped to the source.
    stream.read_to_end(0).await.map_err(|cause| Error::link("peer", cause))?;
    if raw_len == 0 {
        return Ok(ReceivedSegment { context, segment, covered, image, delta: Vec::new() });
    }
    let decode = move || {
        let delta = decode_records(&codec::decompress_against(image.bytes(), &wire, raw_len)?)?;
        Ok(ReceivedSegment { context, segment, covered, image, delta })
    };
    aside(decode).await?
}

/// Reads a frame of this kind; a message of failure in its place is the peer's refusal.
pub(super) async fn read_frame(stream: &mut RecvStream, kind: u8) -> Result<(FrameContext, Columns)> {
    let mut header_bytes = [0; HEADER_LEN];
    stream.read_exact(&mut header_bytes).await.map_err(|cause| Error::link("peer", format!("{cause:?}")))?;
    let header = frame::decode_header(&header_bytes)?;
    if header.kind == message::KIND_FAILED && kind != header.kind {
        let payload = read_exact_limited(stream, header.payload_len, PAYLOAD_MAX).await?;
        return Err(Error::Refused { what: frame::decode_payload(&header_bytes, header, &payload)?.text_at(0)? });
    }
    if header.kind != kind {
        return Err(Error::protocol(format!("frame kind {} where {kind} was due", header.kind)));
    }
    let payload = read_exact_limited(stream, header.payload_len, PAYLOAD_MAX).await?;
    Ok((header.context, frame::decode_payload(&header_bytes, header, &payload)?))
}
