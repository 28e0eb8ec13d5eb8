//! Orders of one push: made for all nodes at once, and again for those that stood
//! elsewhere than remembered.
//!
//! A person may have to touch a security key for each order, so a new one waits
//! until every node has said whether its order fits, and is then for all that
//! need it together. A node that waits for somebody else's order holds up nobody.

use super::{MakeOrder, SignedOrder};
use crate::sign::SignError;
use bulkhead_core::{NodeName, order};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::sync::{mpsc, oneshot};

pub(super) type Order = Result<Arc<SignedOrder>, Arc<SignError>>;

enum Word {
    /// The node took its order, waits for another's, or is out of it.
    Settled(NodeName),
    /// The node needs an order for this place in its history.
    Wants(NodeName, order::Target, oneshot::Sender<Order>),
}

/// A node's line to whoever makes orders.
#[derive(Debug)]
pub(super) struct Line {
    node: NodeName,
    sender: mpsc::UnboundedSender<Word>,
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Settled(node) => write!(f, "Settled({node})"),
            Self::Wants(node, ..) => write!(f, "Wants({node})"),
        }
    }
}

impl Line {
    /// This node needs no other order, as far as it is known.
    pub(super) fn settled(&self) {
        // Where nobody makes orders any more, nobody waits for this word.
        self.sender.send(Word::Settled(self.node.clone())).ok();
    }

    /// An order for this place in the node's history.
    pub(super) async fn order(&self, target: order::Target) -> Option<Order> {
        let (reply, answer) = oneshot::channel();
        self.sender.send(Word::Wants(self.node.clone(), target, reply)).ok()?;
        answer.await.ok()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.settled();
    }
}

/// Lines for these nodes, and what serves them until all are dropped.
pub(super) fn lines(nodes: &[NodeName]) -> (Vec<Line>, Desk) {
    let (sender, words) = mpsc::unbounded_channel();
    let line = |node: &NodeName| Line { node: node.clone(), sender: sender.clone() };
    (nodes.iter().map(line).collect(), Desk { words, undecided: nodes.iter().cloned().collect() })
}

/// Makes orders.
#[derive(Debug)]
pub(super) struct Desk {
    words: mpsc::UnboundedReceiver<Word>,
    undecided: BTreeSet<NodeName>,
}

impl Desk {
    pub(super) async fn serve(mut self, make: &MakeOrder<'_>) {
        let mut waiting: BTreeMap<NodeName, (order::Target, oneshot::Sender<Order>)> = BTreeMap::new();
        while let Some(word) = self.words.recv().await {
            match word {
                Word::Settled(node) => {
                    self.undecided.remove(&node);
                }
                Word::Wants(node, target, reply) => {
                    self.undecided.remove(&node);
                    waiting.insert(node, (target, reply));
                }
            }
            if !self.undecided.is_empty() || waiting.is_empty() {
                continue;
            }
            let targets = waiting.iter().map(|(node, (target, _))| (node.clone(), target.clone())).collect();
            let order = make(targets).await.map(Arc::new).map_err(Arc::new);
            for (node, (_, reply)) in std::mem::take(&mut waiting) {
                self.undecided.insert(node);
                // A node that gave up meanwhile says so when its line is dropped.
                reply.send(order.clone()).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::BootId;
    use std::sync::Mutex;

    #[tokio::test]
    async fn one_order_for_all_and_one_for_those_that_need_another() {
        let names: Vec<NodeName> = ["a", "b", "c"].iter().map(|name| name.parse().unwrap()).collect();
        let made: Mutex<Vec<Vec<(String, u64)>>> = Mutex::default();
        let make = |targets: BTreeMap<NodeName, order::Target>| {
            made.lock().unwrap().push(targets.iter().map(|(node, t)| (node.to_string(), t.counter)).collect());
            let order = SignedOrder { bytes: vec![], signatures: vec![] };
            Box::pin(async move { Ok(order) }) as std::pin::Pin<Box<dyn Future<Output = _> + Send>>
        };
        let (mut lines, desk) = lines(&names);
        let (c, b, a) = (lines.pop().unwrap(), lines.pop().unwrap(), lines.pop().unwrap());
        let target = |counter| order::Target::new(counter, None, BootId([1; 32]));
        let node = |line: Line, counters: Vec<u64>| async move {
            for counter in counters {
                line.order(target(counter)).await.unwrap().unwrap();
            }
        };
        tokio::join!(desk.serve(&make), node(a, vec![1, 5]), node(b, vec![1]), node(c, vec![1, 7]));
        let first = vec![("a".to_owned(), 1), ("b".to_owned(), 1), ("c".to_owned(), 1)];
        let second = vec![("a".to_owned(), 5), ("c".to_owned(), 7)];
        assert_eq!(*made.lock().unwrap(), [first, second]);
    }
}
