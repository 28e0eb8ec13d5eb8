//! Nodes that an order leaves as they are because they did not answer.
//!
//! One dead node must not keep an order from the others. A command that asks
//! first makes its order for those that answered, says in the plan and at the
//! end which were left and why, and ends with the exit code for unreachable. What
//! is to be done later is given as a command line that means the same then as
//! it does now.

use crate::{
    error::{Error, Result},
    session::Answer,
};
use bulkhead_core::NodeName;

/// A node that did not answer.
#[derive(Debug, Clone)]
pub struct Left {
    /// Which.
    pub node: NodeName,
    /// Why not.
    pub error: Error,
}

impl Left {
    /// Why it did not answer, in a line.
    #[must_use]
    pub fn reason(&self) -> String {
        self.error.as_causes().join(": ")
    }
}

/// What nodes answered, by node.
pub type Answers<T> = Vec<(NodeName, T)>;

/// What nodes answered, and those that did not.
///
/// # Errors
/// None answered: the first one's error.
pub fn answered<T>(answers: Vec<Answer<T>>) -> Result<(Answers<T>, Vec<Left>)> {
    let (mut good, mut left) = (Vec::new(), Vec::new());
    for Answer { node, result } in answers {
        match result {
            Ok(value) => good.push((node, value)),
            Err(error) => left.push(Left { node, error }),
        }
    }
    if good.is_empty() && !left.is_empty() {
        return Err(left.swap_remove(0).error);
    }
    Ok((good, left))
}

/// A command line as it would be typed.
#[must_use]
pub fn command_line(words: &[&str]) -> String {
    std::iter::once("bulkhead").chain(words.iter().copied()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn one_answer_is_enough_and_none_is_not() {
        let answer = |node: &str, good: bool| Answer {
            node: node.parse().unwrap(),
            result: if good { Ok(()) } else { Err(Error::new(Kind::Unreachable, format!("{node} is away"))) },
        };
        let (good, left) = answered(vec![answer("a", false), answer("b", true), answer("c", false)]).unwrap();
        assert_eq!(good, [("b".parse().unwrap(), ())]);
        assert_eq!(left.iter().map(|left| left.node.as_str()).collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(left[1].reason(), "c is away");
        let error = answered(vec![answer("a", false), answer("b", false)]).unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (Kind::Unreachable, "a is away"));
        assert!(answered::<()>(vec![]).unwrap().0.is_empty());
    }
}
