//! Whether an image is green: stated so by as many distinct green keys as an
//! environment demands, and marked red by none.

use crate::{
    Refusal, Rule, SignedText, Verified,
    signers::{holders, signers},
};
use bulkhead_core::{
    AppName, FleetName, ImageId, StatementId, Timestamp,
    notice::Revoked,
    policy::{Policy, Role},
    statement::{NAMESPACE, STATEMENT_MAX_BYTES, Statement, TestResult},
};
use std::collections::BTreeSet;

/// Checks a statement: of a green key, for this fleet, and not from the future.
///
/// # Errors
/// The first rule that refuses.
pub fn verify_statement(signed: &SignedText, policy: &Policy, now: Timestamp) -> Result<Verified<Statement>, Refusal> {
    let bytes = signed.text.as_bytes();
    if bytes.len() > STATEMENT_MAX_BYTES {
        return Err(Refusal::new(Rule::Malformed, "the statement is longer than 16 KiB"));
    }
    let found = signers(bytes, &signed.signatures, NAMESPACE, holders(policy, Role::Green));
    if found.count() == 0 {
        let message = format!("a statement about an image needs a green key; presented: {}", found.presented());
        let hint = format!("green keys are held by {}", policy.names_of(Role::Green));
        return Err(Refusal::new(Rule::Threshold, message).hint(hint));
    }
    let statement = Statement::parse(bytes).map_err(|what| Refusal::new(Rule::Malformed, what))?;
    if statement.predicate.fleet != policy.fleet {
        let message = format!("the statement is for fleet `{}`, not `{}`", statement.predicate.fleet, policy.fleet);
        return Err(Refusal::new(Rule::Fleet, message));
    }
    if statement.predicate.issued > now.plus_s(crate::order::CLOCK_SKEW_S) {
        let message = format!("the statement was issued at {}; the clock here says {now}", statement.predicate.issued);
        return Err(Refusal::new(Rule::Expired, message).hint("compare the clocks"));
    }
    Ok(Verified::new(statement, found.into_names()))
}

/// Who says what about an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Colour {
    /// Holders of the distinct green keys that say it is green.
    pub green: BTreeSet<String>,
    /// Holders of green keys that say it is red; one is enough.
    pub red: BTreeSet<String>,
    /// What statements that came do not count, and why.
    pub notes: Vec<String>,
}

impl Colour {
    /// With what others say.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.green.extend(other.green);
        self.red.extend(other.red);
        self.notes.extend(other.notes);
        self
    }
}

/// Finds out what statements say about an app's image. How many are looked at is for who has them: of what a stranger
/// brings [`STATEMENTS_MAX`](bulkhead_core::statement::STATEMENTS_MAX) at most.
#[must_use]
pub fn colour(
    statements: &[SignedText],
    policy: &Policy,
    revoked: &[&Revoked],
    fleet: &FleetName,
    app: &AppName,
    image: ImageId,
    now: Timestamp,
) -> Colour {
    let mut colour = Colour::default();
    for signed in statements {
        let id = StatementId::of(signed.text.as_bytes());
        if revoked.iter().any(|revoked| revoked.statements.contains(&id)) {
            colour.notes.push(format!("statement {} was revoked", id.short()));
            continue;
        }
        let verified = match verify_statement(signed, policy, now) {
            Ok(verified) => verified,
            Err(refusal) => {
                colour.notes.push(refusal.message);
                continue;
            }
        };
        let statement = verified.value();
        if statement.image != image || statement.app != *app || statement.predicate.fleet != *fleet {
            let other = statement.image.short();
            colour.notes.push(format!("a statement about image {other} of `{}`", statement.app));
            continue;
        }
        let side = match statement.predicate.result {
            TestResult::Passed => &mut colour.green,
            TestResult::Failed => &mut colour.red,
        };
        side.extend(verified.signers().iter().cloned());
    }
    colour
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{policy::tests::policy, sshsig::tests::TestKey};
    use bulkhead_core::{policy::Key, statement::Predicate};

    pub(crate) const IMAGE: ImageId = ImageId([7; 32]);

    pub(crate) fn statement(result: TestResult) -> Statement {
        Statement {
            app: "notes".parse().unwrap(),
            image: IMAGE,
            predicate: Predicate {
                result,
                fleet: "acme".parse().unwrap(),
                repository: "r".into(),
                commit: "c".into(),
                builder: "b".into(),
                issued: Timestamp(1_000_000),
            },
        }
    }

    pub(crate) fn signed(statement: &Statement, keys: &[&TestKey]) -> SignedText {
        let bytes = statement.to_bytes();
        let signatures = keys.iter().map(|key| key.sign(NAMESPACE, &bytes)).collect();
        SignedText { text: String::from_utf8(bytes).unwrap(), signatures }
    }

    fn fixture() -> (Policy, TestKey, TestKey, TestKey) {
        let (ada, ci, builder) = (TestKey::new(1), TestKey::new(3), TestKey::new(4));
        let mut policy = policy(1, &[&ada], 1, &[("ada", &ada)], 1);
        for (name, key) in [("ci", &ci), ("builder", &builder)] {
            let key = Key { key: key.public.to_openssh(), roles: [Role::Green].into(), verify_user: false };
            policy.keys.insert(name.parse().unwrap(), key);
        }
        (policy, ada, ci, builder)
    }

    #[test]
    fn statements() {
        let (policy, ada, ci, _) = fixture();
        let check = |statement: &Statement, keys: &[&TestKey]| {
            verify_statement(&signed(statement, keys), &policy, Timestamp(1_000_000))
                .map(|verified| verified.signers().join(" "))
                .map_err(|refusal| refusal.rule)
        };
        let good = statement(TestResult::Passed);
        assert_eq!(check(&good, &[&ci]).as_deref(), Ok("ci"));
        assert_eq!(check(&good, &[]), Err(Rule::Threshold));
        assert_eq!(check(&good, &[&ada]), Err(Rule::Threshold), "a release key is no green key");
        let mut other = good.clone();
        other.predicate.fleet = "evil".parse().unwrap();
        assert_eq!(check(&other, &[&ci]), Err(Rule::Fleet));
        let mut future = good.clone();
        future.predicate.issued = Timestamp(1_000_000 + crate::order::CLOCK_SKEW_S);
        assert!(check(&future, &[&ci]).is_ok());
        future.predicate.issued = Timestamp(1_000_000 + crate::order::CLOCK_SKEW_S + 1);
        assert_eq!(check(&future, &[&ci]), Err(Rule::Expired));
        let mut empty = good;
        empty.predicate.commit.clear();
        assert_eq!(check(&empty, &[&ci]), Err(Rule::Malformed));
        let length = |bytes: usize| {
            let text = " ".repeat(bytes);
            let signatures = vec![ci.sign(NAMESPACE, text.as_bytes())];
            verify_statement(&SignedText { text, signatures }, &policy, Timestamp(0)).unwrap_err().message
        };
        assert!(length(STATEMENT_MAX_BYTES + 1).contains("longer than"));
        assert!(length(STATEMENT_MAX_BYTES).contains("not a statement"));
    }

    #[test]
    fn colours() {
        let (policy, ada, ci, builder) = fixture();
        let see = |statements: &[SignedText], revoked: &Revoked| {
            let (fleet, app) = ("acme".parse().unwrap(), "notes".parse().unwrap());
            let nothing = Revoked::default();
            let colour = colour(statements, &policy, &[&nothing, revoked], &fleet, &app, IMAGE, Timestamp(1_000_000));
            (colour.green.len(), colour.red.len(), colour.notes.len())
        };
        let nothing = Revoked::default();
        let good = statement(TestResult::Passed);
        let green = signed(&good, &[&ci]);
        assert_eq!(see(&[], &nothing), (0, 0, 0));
        assert_eq!(see(std::slice::from_ref(&green), &nothing), (1, 0, 0));
        assert_eq!(see(&[green.clone(), green.clone()], &nothing), (1, 0, 0), "one key twice");
        assert_eq!(see(&[signed(&good, &[&ci, &builder])], &nothing), (2, 0, 0));
        assert_eq!(see(&[green.clone(), signed(&good, &[&builder])], &nothing), (2, 0, 0));
        assert_eq!(see(&[signed(&good, &[&ada])], &nothing), (0, 0, 1));
        assert_eq!(see(&[signed(&Statement { image: ImageId([8; 32]), ..good.clone() }, &[&ci])], &nothing), (0, 0, 1));
        let other = Statement { app: "other".parse().unwrap(), ..good.clone() };
        assert_eq!(see(&[signed(&other, &[&ci])], &nothing), (0, 0, 1));
        assert_eq!(see(&[signed(&statement(TestResult::Failed), &[&ci])], &nothing), (0, 1, 0));
        let revoked = Revoked { statements: [StatementId::of(green.text.as_bytes())].into(), ..Revoked::default() };
        assert_eq!(see(std::slice::from_ref(&green), &revoked), (0, 0, 1));
    }
}
