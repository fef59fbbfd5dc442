//! `GET /api/events`: what happens, as server-sent events (WHATWG HTML, section 9.2).
//!
//! Guarantees: who reads slowly has a few events in memory here, and no more; who hangs up is noticed within
//! [`PULSE`].

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::Frame;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::attachments::{Seen, Watching};

/// How often something is sent if nothing happens.
const PULSE: Duration = Duration::from_secs(15);

/// How many events wait here for the connection.
const WAITING: usize = 16;

/// The answer's body: it ends when the daemon stops.
pub(super) fn body(watching: Watching) -> Body {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(feed(watching, sender));
    Body::new(Stream(receiver))
}

async fn feed(mut watching: Watching, sender: mpsc::Sender<Bytes>) {
    let mut pulse = interval(PULSE);
    pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let text = tokio::select! {
            seen = watching.next() => match seen {
                Some(seen) => text(&seen),
                None => return,
            },
            // The first one at once: from then on nothing is missed.
            _ = pulse.tick() => Bytes::from_static(b": v6podd\n\n"),
            () = sender.closed() => return,
        };
        if sender.send(text).await.is_err() {
            return;
        }
    }
}

fn text(seen: &Seen) -> Bytes {
    let text = match seen {
        // One line: JSON has no line feed in it but as an escape.
        Seen::Event(event) => serde_json::to_string(event.as_ref())
            .map(|json| format!("event: {}\ndata: {json}\n\n", event.event.as_str())),
        Seen::Missed(count) => Ok(format!("event: missed\ndata: {count}\n\n")),
    };
    text.unwrap_or_default().into()
}

struct Stream(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|text| text.map(|text| Ok(Frame::data(text))))
    }
}
