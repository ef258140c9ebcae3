//! The network itself: what is ordered, what waits, what is noticed when.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::rc::Rc;

use antumbra_engine::sim::Node;

use crate::transport::{PlaneHandle, StreamEnded};

use super::*;

const WEATHER: Weather = Weather {
    delay_us: 300,
    late_per_mille: 300,
    late_ms: 200,
    bulk_late_per_mille: 0,
    bulk_late_ms: 1,
    lost_answers_per_mille: 0,
    window: 1 << 10,
};

/// What comes back, once it has.
type Answer = Rc<RefCell<Option<Result<Vec<u8>, StreamEnded>>>>;

/// Two hosts; the second one echoes every stream once it has all of it.
struct Pair {
    network: Network,
    nodes: [Node; 2],
    now: Duration,
}

impl Pair {
    fn new(seed: u64, weather: Weather) -> Pair {
        let network = Network::new(seed, 2, weather);
        network.rise(0);
        network.rise(1);
        let pair = Pair {
            network,
            nodes: [Node::new(seed, 0, 0, None), Node::new(seed + 1, 0, 0, None)],
            now: Duration::ZERO,
        };
        pair.listen();
        pair
    }

    fn listen(&self) {
        let echo: Handler = Arc::new(|incoming| {
            Box::pin(async move {
                let (mut send, mut recv) = (incoming.send.unwrap(), incoming.recv);
                if let Ok(bytes) = recv.read_to_end(1 << 20).await {
                    let _ = send.write_all(&bytes).await;
                }
            })
        });
        self.network.listen(1, SchedulingClass::Normal, echo);
    }

    /// Sends `bytes` and returns what comes back.
    fn echo(&self, bytes: Vec<u8>, ends: bool) -> Answer {
        let nothing: Handler = Arc::new(|_| Box::pin(async {}));
        let plane = PlaneHandle::simulated(self.network.listen(0, SchedulingClass::Normal, nothing));
        let result = Rc::new(RefCell::new(None));
        let answer = Rc::clone(&result);
        self.nodes[0].spawn(async move {
            let to = Network::address(1, SchedulingClass::Normal);
            let (mut send, mut recv) = plane.open_bi(to, HostId(2), StreamKind::Forward).await.unwrap();
            let exchange = async {
                send.write_all(&bytes).await?;
                if ends {
                    send.finish()?;
                }
                recv.read_to_end(1 << 20).await
            };
            let exchanged = exchange.await;
            *answer.borrow_mut() = Some(exchanged);
        });
        result
    }

    fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let nodes = (0..2).filter_map(|place| Some((self.nodes[place].due()?, place)));
            let next = nodes.chain(self.network.due().map(|due| (due, 2))).min();
            let Some((due, turn)) = next.filter(|(due, _)| *due <= end) else {
                self.now = end;
                return self.network.advance(end);
            };
            self.now = self.now.max(due);
            self.network.advance(self.now);
            if turn < 2 {
                self.nodes[turn].turn(self.now);
            } else if let Some(arrival) = self.network.step() {
                let node = &self.nodes[arrival.place];
                let _on = node.enter();
                node.spawn((arrival.handler)(arrival.incoming));
            }
        }
    }
}

#[test]
fn stream_with_late_pieces_and_a_small_window_keeps_its_order() {
    for seed in 0..10 {
        let mut pair = Pair::new(seed, WEATHER);
        let bytes: Vec<u8> = (0..9_000_u32).flat_map(u32::to_le_bytes).take(9_000).collect();
        let result = pair.echo(bytes.clone(), true);
        pair.run_for(Duration::from_secs(30));
        assert_eq!(result.take().unwrap().unwrap(), bytes);
    }
}

#[test]
fn cut_shorter_than_the_time_out_is_survived_and_a_longer_one_is_noticed() {
    for (cut_ms, survives) in [(2_000, true), (20_000, false)] {
        let mut pair = Pair::new(7, WEATHER);
        let result = pair.echo(vec![7; 100], false);
        pair.run_for(Duration::from_secs(1));
        pair.network.set_cut(1, 0, true);
        pair.run_for(Duration::from_millis(cut_ms));
        pair.network.set_cut(1, 0, false);
        pair.run_for(Duration::from_millis(10));
        assert_eq!(result.borrow().is_none(), survives, "after {cut_ms} ms");
    }
}

#[test]
fn restarted_peer_is_noticed_before_the_time_out() {
    let mut pair = Pair::new(9, WEATHER);
    let result = pair.echo(vec![7; 100], false);
    pair.run_for(Duration::from_secs(1));
    pair.network.fall(1);
    pair.nodes[1].kill();
    pair.run_for(Duration::from_millis(300));
    assert!(result.borrow().is_none(), "a silent peer is waited for");
    pair.network.rise(1);
    pair.listen();
    pair.run_for(Duration::from_millis(1_500));
    assert!(matches!(result.take(), Some(Err(_))));
}

#[test]
fn lost_answer_is_told_of() {
    let mut pair = Pair::new(3, Weather { lost_answers_per_mille: 1_000, ..WEATHER });
    let nothing: Handler = Arc::new(|_| Box::pin(async {}));
    let plane = PlaneHandle::simulated(pair.network.listen(0, SchedulingClass::Normal, nothing));
    let result = Rc::new(RefCell::new(None));
    let answer = Rc::clone(&result);
    pair.nodes[0].spawn(async move {
        let to = Network::address(1, SchedulingClass::Normal);
        let (mut send, mut recv) = plane.open_bi(to, HostId(2), StreamKind::Coordinator).await.unwrap();
        send.write_all(b"ask").await.unwrap();
        send.finish().unwrap();
        *answer.borrow_mut() = Some(recv.read_to_end(100).await);
    });
    pair.run_for(Duration::from_secs(3));
    assert!(matches!(result.take(), Some(Err(_))));
}
