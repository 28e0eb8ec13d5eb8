//! A connection that breaks while an order is on its way: asking the node how it ended.
//!
//! Once a node has accepted an order it carries it out whoever is connected, so
//! a broken connection says nothing about the order. The very same signed order,
//! sent again over a fresh connection without its image, is the question: a node
//! that accepted it waits until it is carried out and answers as it ended (one that
//! was interrupted carries it out), and a node that did not says that it misses the
//! image. The push then goes on from what the node has. Nothing is signed anew, so
//! nothing can be done twice.

use super::{End, Expected, Line, Progress, PushError, Pushing, SignedOrder, Times};
use crate::{
    client::{NodeClient, NodeError},
    frames::FramesError,
    identity::Identities,
};
use bulkhead_core::ImageId;
use bulkhead_wire::Done;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Before each try to connect again: soon, for a connection that was merely reset; then for as
/// long as a laptop takes to change networks.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_millis(800), Duration::from_secs(2), Duration::from_secs(5)];
/// All tries together: a person waits, and can ask later.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// The rule by which a node says that an image was neither sent nor there.
const RULE_OF_IMAGE: &str = "no-image";

/// What a node answered.
pub(super) enum Again {
    /// It carried the order out.
    Done(Done),
    /// It has not accepted the order. This is the connection to it.
    NotAccepted(NodeClient),
}

/// Whether a conversation ended because the connection did, not because the node had said all.
fn is_broken(error: &NodeError) -> bool {
    match error {
        NodeError::Channel { .. } => true,
        NodeError::Frames { source, .. } => matches!(source, FramesError::Frame(_) | FramesError::Write(_)),
        NodeError::Ended { ending, .. } => ending.exit_status.is_none() && ending.signal.is_none(),
        _ => false,
    }
}

impl Pushing<'_> {
    /// Whether the node can be asked how an order ended of which this was heard last.
    pub(super) fn may_ask_again(&self, error: &NodeError) -> bool {
        // Whoever spoke for a node that accepted the order may have died over it.
        is_broken(error) || (self.timings.durable_ms.is_some() && matches!(error, NodeError::Ended { .. }))
    }

    /// Asks, over a fresh connection.
    pub(super) async fn ask_again(
        &mut self,
        identities: &Identities,
        order: &SignedOrder,
        line: &Line,
        mut broke: NodeError,
    ) -> Result<Again, PushError> {
        line.settled();
        self.is_dropped_used = true;
        let until = Instant::now() + CONNECT_WITHIN;
        for pause in PAUSES {
            self.tell(Progress::Lost);
            tokio::time::sleep(pause).await;
            let connecting = NodeClient::connect(self.target, identities, self.timeouts);
            let left = until.saturating_duration_since(Instant::now());
            let Ok(connected) = tokio::time::timeout(left, connecting).await else { break };
            let client = match connected {
                Ok(client) => client,
                Err(error) => {
                    broke = error;
                    continue;
                }
            };
            let times = Times { connected: Instant::now(), measured: Arc::default() };
            self.is_asking = true;
            let end = self.submit(&client, order, &Expected::default(), None, line, &times).await;
            self.is_asking = false;
            match end {
                Ok(End::Done(done)) => {
                    client.close().await;
                    self.holds(self.push.payload.as_ref().map(|payload| ImageId::of(&payload.document)));
                    // It was this push that had it done.
                    return Ok(Again::Done(Done { already: false, ..done }));
                }
                // Another order came after: signing anew would undo it unseen.
                Ok(End::Elsewhere(error, _)) => return Err(error.into()),
                Ok(End::NoBase | End::Lacking(_)) => return Ok(Again::NotAccepted(client)),
                Err(PushError::Node(NodeError::Failed { failure, .. })) if failure.rule == RULE_OF_IMAGE => {
                    return Ok(Again::NotAccepted(client));
                }
                Err(PushError::Node(error)) if self.may_ask_again(&error) => broke = error,
                Err(error) => return Err(error),
            }
        }
        let accepted = self.timings.durable_ms.is_some();
        Err(PushError::Lost { node: self.target.node.clone(), accepted, source: Box::new(broke) })
    }
}
