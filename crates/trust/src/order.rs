//! Whether a node carries an order out.
//!
//! Signatures come first: an order is not read before a key that the policy
//! gives a say in orders has signed its exact bytes. Then it is read, and must
//! be for this node and this time; then it must meet what its environment
//! demands of its kind:
//!
//! | order | needs |
//! |---|---|
//! | run an image | one of the environment's ways (`accepts`), or to be a fallback of what is live and one release key, or to break glass with as many release keys as the environment says |
//! | stop, restart | one release key |
//! | start, remove | as many release keys as the environment's easiest way |
//! | look with a tool | as many release keys as the environment says for it (`look`) |
//! | run, stop or remove an instance, within a scale grant | the key that the grant names; and what an order to run the image would need, of the grant |
//!
//! Last comes where the app stands on the node. Its counter goes up by exactly
//! one, so no thief of a key can use counters up; see [`FLOOR_STEP_MAX`].

use crate::{
    PublicKey, Refusal, Rule, SignedText, Verified,
    green::{Colour, colour},
    signers::{Found, holders, presented_by, signers},
};
use bulkhead_core::{
    AppName, BootId, EnvironmentName, FleetName, ImageId, NodeName, OrderId, PoolName, RunId, SecretDigest, SecretName,
    Timestamp,
    grant::{GRANT_MAX_BYTES, Grant, NAMESPACE as GRANT_NAMESPACE},
    notice::{Heartbeat, Revoked},
    order::{Action, NAMESPACE, ORDER_MAX_BYTES, Order, Run, Target},
    policy::{Demand, Environment, Isolation, Policy, Role},
    standing::{NAMESPACE as STANDING_NAMESPACE, STANDING_MAX_BYTES, StandingOrder},
    statement::STATEMENTS_MAX,
};
use std::collections::{BTreeMap, BTreeSet};

/// How far ahead of the node's clock an order may have been issued: clocks of
/// operators' machines differ by minutes, not by hours.
pub const CLOCK_SKEW_S: i64 = 600;

/// How long an order may last, whatever its signer wrote: one that was captured before it was used is a danger for
/// no longer.
pub const LIFETIME_MAX_S: i64 = 2 * 3600;

/// How far a floor may lift a counter at once, and how far an order may be ahead of a node to be proof that the node
/// has forgotten something: far more orders than a snapshot is old, and so few that a stolen key cannot use up the
/// counters of an app, which have 64 bits.
pub const FLOOR_STEP_MAX: u64 = 1_000_000;

/// Who decides: the node and what it knows.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The node's fleet.
    pub fleet: &'a FleetName,
    /// Its environment.
    pub environment: &'a EnvironmentName,
    /// Its name.
    pub node: &'a NodeName,
    /// The pool that it was bought for.
    pub pool: Option<&'a PoolName>,
    /// The policy it enforces.
    pub policy: &'a Policy,
    /// Its clock.
    pub now: Timestamp,
    /// The latest time it has ever known, kept on disk: a clock before it has gone back.
    pub minimum_time: Timestamp,
    /// Its present boot.
    pub boot: BootId,
    /// What the revocations that it was brought say; the policy's own come on top.
    pub revoked: &'a Revoked,
    /// The newest heartbeat that it was brought.
    pub heartbeat: Option<&'a Heartbeat>,
    /// What it offers.
    pub offers: &'a BTreeSet<Isolation>,
}

/// What came.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    /// The order's exact bytes.
    pub bytes: &'a [u8],
    /// Armoured SSHSIG signatures over them.
    pub signatures: &'a [String],
    /// Statements about its image.
    pub statements: &'a [SignedText],
    /// A standing order.
    pub standing: Option<&'a SignedText>,
    /// A scale grant. An order that comes with one is judged by it alone, whoever else signed.
    pub grant: Option<&'a SignedText>,
}

/// Where the app stands on the node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// Counter of the last accepted order; 0 where there was none.
    pub counter: u64,
    /// That order.
    pub previous: Option<OrderId>,
    /// How many orders the node must have accepted, as orders prove that it met; see [`Refusal::ahead`].
    pub seen: u64,
    /// What any one release key may put in the place of what is live.
    pub fallback: BTreeSet<RunId>,
    /// What is live.
    pub live: Option<Live>,
    /// How often each standing order was used here.
    pub uses: BTreeMap<OrderId, u32>,
    /// The statements about the order's image that the node was brought before.
    pub statements: Vec<SignedText>,
    /// The sealed values that what is live has.
    pub secrets: BTreeMap<SecretName, SecretDigest>,
    /// Whether people had it run last, or left its data here: then no scale grant touches it.
    pub is_of_people: bool,
}

/// The live release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    /// The order that brought it.
    pub order: OrderId,
    /// What it runs.
    pub run: RunId,
    /// From which image.
    pub image: ImageId,
    /// Whether glass was broken for it: then it is nothing to go back to on one key.
    pub broke_glass: bool,
}

/// Why an order was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grounds {
    /// It runs nothing new, and enough release keys signed it.
    People,
    /// It meets one of the environment's ways.
    Demand(Demand),
    /// It goes back to what was listed to go back to.
    Fallback,
    /// It broke glass.
    BreakGlass,
    /// A scale grant covers it.
    Grant {
        /// Which.
        id: OrderId,
        /// Who signed it.
        by: Vec<String>,
    },
}

/// An order to carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorized {
    /// The order and who signed it.
    pub order: Verified<Order>,
    /// Why.
    pub grounds: Grounds,
    /// Who stated that its image is green, where that was demanded.
    pub green: BTreeSet<String>,
    /// The standing order that it uses.
    pub standing: Option<OrderId>,
}

/// Checks an order's signatures over its exact bytes, then everything it says
/// about whom it is for and when, then what its environment demands. `place` gives where the order's app stands
/// on this node; it is asked only once the order is known to be signed and for this node and time.
///
/// # Errors
/// The first rule that refuses.
pub fn authorize_order(
    presented: &Presented<'_>,
    context: &Context<'_>,
    place: impl FnOnce(&Order) -> Place,
) -> Result<Authorized, Refusal> {
    let Context { policy, environment: name, .. } = *context;
    let signed = Signed::of(presented, policy, name)?;
    let order = Order::parse(presented.bytes).map_err(|error| Refusal::new(Rule::Malformed, error.to_string()))?;
    let target = check_address(&order, context.fleet, name, context.node)?.clone();
    check_time("order", order.issued, order.not_after, context)?;
    check_fresh(&order, signed.environment, context)?;
    let place = place(&order);
    let revoked = [&policy.revoked, context.revoked];
    check_revoked(&order, OrderId::of(presented.bytes), place.live, &revoked)?;
    let judge = Judge { presented, policy, signed: &signed, revoked: &revoked, order: &order };
    let granted = match (presented.grant, &order.action) {
        (Some(grant), _) => judge.grant(grant, context, &place)?,
        (None, Action::Run(run)) if is_fallback(run, &target, &place) && order.break_glass.is_none() => {
            judge.people(1).map(|()| Granted::plain(Grounds::Fallback))?
        }
        (None, Action::Run(run)) => judge.run(run, context.node, context.now, &place)?,
        (None, Action::Stop { .. } | Action::Restart { .. }) => {
            judge.people(1).map(|()| Granted::plain(Grounds::People))?
        }
        (None, Action::Start { .. } | Action::Remove { .. }) => {
            judge.people(signed.environment.people()).map(|()| Granted::plain(Grounds::People))?
        }
        (None, Action::Look(_)) => judge.look().map(|()| Granted::plain(Grounds::People))?,
    };
    if let Action::Run(run) = &order.action {
        check_isolation(signed.environment, name, context.offers)?;
        check_fallback(run, &granted, &place)?;
    }
    let Granted { grounds, green, standing } = granted;
    let weight = Weight {
        stops: matches!(order.action, Action::Stop { .. }),
        proves: matches!(grounds, Grounds::Demand(_) | Grounds::BreakGlass),
    };
    check_place(&target, &order.app, weight, context, &place)?;
    Ok(Authorized { order: Verified::new(order, signed.names()), grounds, green, standing })
}

/// Whether it is listed to go back to, with secrets that are there now: new ones are nothing to go back to.
fn is_fallback(run: &Run, target: &Target, place: &Place) -> bool {
    place.fallback.contains(&run.id()) && has_known_secrets(target, place)
}

fn has_known_secrets(target: &Target, place: &Place) -> bool {
    target.secrets.iter().all(|(name, digest)| place.secrets.get(name) == Some(digest))
}

/// What an order lists to go back to is as good as signed in full. That takes an order for which release keys alone
/// were enough: a green statement is about the image that the order runs, and not about what it lists. Any other may
/// list what was listed, and what is live.
fn check_fallback(run: &Run, granted: &Granted, place: &Place) -> Result<(), Refusal> {
    let is_in_full = matches!(&granted.grounds, Grounds::Demand(Demand { release: 1.., green: 0, standing: false }));
    let is_live = |id: &RunId| place.live.is_some_and(|live| live.run == *id && !live.broke_glass);
    let is_known = |id: &RunId| place.fallback.contains(id) || is_live(id);
    if is_in_full || run.fallback.iter().all(is_known) {
        return Ok(());
    }
    let message = "the order lists something to go back to that neither is live here nor was listed before";
    Err(Refusal::new(Rule::Threshold, message).hint("leave it out"))
}

/// Reads an order of which a key with a say in orders signed the exact bytes: enough to know whose lock to wait for, and
/// for nothing else.
///
/// # Errors
/// Nobody who counts has signed it, or it is no order.
pub fn read_signed(
    presented: &Presented<'_>,
    policy: &Policy,
    environment: &EnvironmentName,
) -> Result<Order, Refusal> {
    Signed::of(presented, policy, environment)?;
    Order::parse(presented.bytes).map_err(|error| Refusal::new(Rule::Malformed, error.to_string()))
}

/// Checks an order that a node says it accepted, before anything of it is signed again: that by the policy of
/// today its exact bytes are signed well enough, and that it is what the node says it is. Its time is over and says
/// nothing. That it was a fallback counts for nothing here: what it went back to was signed in full, once.
///
/// # Errors
/// The first rule that refuses.
pub fn verify_accepted(
    presented: &Presented<'_>,
    policy: &Policy,
    accepted: &Accepted<'_>,
) -> Result<Authorized, Refusal> {
    let signed = Signed::of(presented, policy, accepted.environment)?;
    let order = Order::parse(presented.bytes).map_err(|error| Refusal::new(Rule::Malformed, error.to_string()))?;
    let target = check_address(&order, accepted.fleet, accepted.environment, accepted.node)?;
    if order.app != *accepted.app {
        let message = format!("the order is for app `{}`, not `{}`", order.app, accepted.app);
        return Err(Refusal::new(Rule::Malformed, message));
    }
    if target.counter != accepted.counter {
        let message = format!("the order is number {} there, not {}", target.counter, accepted.counter);
        return Err(Refusal::new(Rule::Counter, message));
    }
    let revoked = [&policy.revoked];
    check_revoked(&order, OrderId::of(presented.bytes), None, &revoked)?;
    let judge = Judge { presented, policy, signed: &signed, revoked: &revoked, order: &order };
    // That its secrets were those of what ran is what the node saw to; what is signed again takes others anyway.
    let place = Place { secrets: target.secrets.clone(), ..Place::default() };
    let Granted { grounds, green, standing } = match &order.action {
        Action::Run(run) => judge.run(run, accepted.node, order.issued, &place)?,
        _ => judge.people(1).map(|()| Granted::plain(Grounds::People))?,
    };
    Ok(Authorized { order: Verified::new(order, signed.names()), grounds, green, standing })
}

/// What a node says of an order that it accepted.
#[derive(Debug, Clone, Copy)]
pub struct Accepted<'a> {
    /// The fleet.
    pub fleet: &'a FleetName,
    /// The node's environment.
    pub environment: &'a EnvironmentName,
    /// The node.
    pub node: &'a NodeName,
    /// The app.
    pub app: &'a AppName,
    /// The order's counter there.
    pub counter: u64,
}

/// A scale grant that enough people signed, whatever it says and whether or not it ended or was revoked.
#[derive(Debug)]
pub struct SignedGrant {
    /// What it says.
    pub grant: Grant,
    /// Who signed it, as the policy names them.
    pub people: Vec<String>,
}

/// Reads a scale grant, if as many release keys signed it as the environment demands of an order.
///
/// # Errors
/// Too few did, or it is none.
pub fn read_grant(signed: &SignedText, policy: &Policy, environment: &EnvironmentName) -> Result<SignedGrant, Refusal> {
    let refuse = |message: String| Refusal::new(Rule::Grant, message);
    let bytes = signed.text.as_bytes();
    if bytes.len() > GRANT_MAX_BYTES {
        return Err(refuse("the scale grant is longer than 256 KiB".into()));
    }
    let Some(demands) = policy.environments.get(environment) else {
        return Err(refuse(format!("the policy has no environment `{environment}`")));
    };
    let Some(needed) = ways_of_people(demands).map(|demand| demand.release).min() else {
        return Err(refuse(format!("`{environment}` takes orders of CI alone, and a grant is given by people")));
    };
    let found = signers(bytes, &signed.signatures, GRANT_NAMESPACE, holders(policy, Role::Release));
    if found.count() < needed as usize {
        let keys = if needed == 1 { "release key" } else { "release keys" };
        let message =
            format!("a scale grant for `{environment}` needs {needed} {keys}; presented: {}", found.presented());
        return Err(refuse(message).hint(who_could(policy)));
    }
    Ok(SignedGrant { grant: Grant::parse(bytes).map_err(refuse)?, people: found.into_names() })
}

/// The ways in which people, and not CI alone, have an image run.
fn ways_of_people(environment: &Environment) -> impl Iterator<Item = &Demand> + Clone {
    environment.accepts.iter().filter(|demand| demand.release > 0 && !demand.standing)
}

/// Who signed an order, and the environment that decides what that is worth.
struct Signed<'a> {
    environment: &'a Environment,
    release: Found,
    green: Found,
    /// Keys that count only for an order that comes with a grant.
    scale: Found,
}

impl<'a> Signed<'a> {
    /// At least one key with a say in orders must have signed these bytes before they are read.
    fn of(presented: &Presented<'_>, policy: &'a Policy, name: &EnvironmentName) -> Result<Self, Refusal> {
        let bytes = presented.bytes;
        if bytes.len() > ORDER_MAX_BYTES {
            return Err(Refusal::new(Rule::Malformed, "the order is longer than 256 KiB"));
        }
        let release = signers(bytes, presented.signatures, NAMESPACE, holders(policy, Role::Release));
        let green = signers(bytes, presented.signatures, NAMESPACE, holders(policy, Role::Green));
        let scale_keys = holders(policy, Role::Scale).filter(|_| presented.grant.is_some());
        let scale = signers(bytes, presented.signatures, NAMESPACE, scale_keys);
        let Some(environment) = policy.environments.get(name) else {
            let message = format!("the policy (version {}) has no environment `{name}`", policy.version);
            return Err(
                Refusal::new(Rule::Environment, message).hint("add it to the policy and have the roots sign it")
            );
        };
        if presented.grant.is_some() {
            if scale.count() == 0 {
                let message =
                    format!("an order within a scale grant needs a scale key; presented: {}", scale.presented());
                let hint = format!("scale keys are held by {}", policy.names_of(Role::Scale));
                return Err(Refusal::new(Rule::Threshold, message).hint(hint));
            }
        } else if release.count() == 0 && green.count() == 0 {
            let message =
                format!("an order for `{name}` needs {}; presented: {}", environment.shown(), release.presented());
            return Err(Refusal::new(Rule::Threshold, message).hint(who_could(policy)));
        }
        Ok(Self { environment, release, green, scale })
    }

    fn names(&self) -> Vec<String> {
        let names: BTreeSet<&String> =
            self.release.names().chain(self.green.names()).chain(self.scale.names()).collect();
        names.into_iter().cloned().collect()
    }
}

fn who_could(policy: &Policy) -> String {
    let release = format!("release keys are held by {}", policy.names_of(Role::Release));
    match policy.holders(Role::Green).next() {
        Some(_) => format!("{release}; green keys by {}", policy.names_of(Role::Green)),
        None => release,
    }
}

/// What an order was granted on.
struct Granted {
    grounds: Grounds,
    green: BTreeSet<String>,
    standing: Option<OrderId>,
}

impl Granted {
    fn plain(grounds: Grounds) -> Self {
        Self { grounds, green: BTreeSet::new(), standing: None }
    }
}

/// Weighs what came with an order against what its environment demands.
struct Judge<'a> {
    presented: &'a Presented<'a>,
    policy: &'a Policy,
    signed: &'a Signed<'a>,
    revoked: &'a [&'a Revoked],
    order: &'a Order,
}

impl Judge<'_> {
    fn refuse(&self, rule: Rule, needs: &str, presented: &str) -> Refusal {
        let message = format!("an order for `{}` needs {needs}; presented: {presented}", self.order.environment);
        Refusal::new(rule, message).hint(who_could(self.policy))
    }

    /// So many distinct release keys.
    fn people(&self, needed: u32) -> Result<(), Refusal> {
        if self.signed.release.count() >= needed as usize {
            return Ok(());
        }
        let keys = if needed == 1 { "release key" } else { "distinct release keys" };
        let needs = format!("{needed} {keys} to {}", self.order.action.verb());
        Err(self.refuse(Rule::Threshold, &needs, &self.signed.release.presented()))
    }

    fn look(&self) -> Result<(), Refusal> {
        match self.signed.environment.lookers() {
            Some(needed) => self.people(needed),
            None => {
                let message = format!(
                    "no number of release keys may look with tools in `{}`: a tool can change what runs, and what \
                     runs there must be green",
                    self.order.environment
                );
                Err(Refusal::new(Rule::Threshold, message).hint(
                    "the policy can allow it to some (`look`); logs and the views of `bulkhead look` need no tool",
                ))
            }
        }
    }

    /// One of the environment's ways, or broken glass.
    fn run(&self, run: &Run, node: &NodeName, now: Timestamp, place: &Place) -> Result<Granted, Refusal> {
        if self.order.break_glass.is_some() {
            return self.break_glass();
        }
        let colour = self.colour(&self.order.app, run.image, now, place);
        let standing = self.standing(run, node, now, place);
        for demand in &self.signed.environment.accepts {
            if let Some(granted) = self.meets(demand, &colour, &standing) {
                return Ok(granted);
            }
        }
        let release = self.signed.release.count();
        // What is missing is said by the rule that is nearest to being met.
        let nearly = self.signed.environment.accepts.iter().filter(|demand| release >= demand.release as usize);
        let rule = nearly.map(|demand| match &standing {
            Err(_) if demand.standing && is_green(demand, &colour) => Rule::Standing,
            _ if !is_green(demand, &colour) => Rule::NotGreen,
            _ => Rule::Threshold,
        });
        let rule = rule.min_by_key(|rule| *rule != Rule::Standing).unwrap_or(Rule::Threshold);
        let mut presented = presented_by(&self.signed.release, &self.signed.green);
        presented = format!("{presented}; image {} {}", run.image.short(), shown(&colour));
        if let Err(why) = &standing
            && self.signed.environment.accepts.iter().any(|demand| demand.standing)
        {
            presented = format!("{presented}; {why}");
        }
        let refusal = self.refuse(rule, &self.signed.environment.shown(), &presented);
        let hint = refusal.hint.clone().unwrap_or_default();
        Err(match rule {
            Rule::NotGreen => refusal.hint(format!("{hint}; CI states an image green with `bulkhead ci mark`")),
            _ => refusal,
        })
    }

    /// Whether a scale grant covers it that is worth what an order to run the image would be.
    fn grant(&self, signed: &SignedText, context: &Context<'_>, place: &Place) -> Result<Granted, Refusal> {
        let refuse = |message: String| Refusal::new(Rule::Grant, message);
        let SignedGrant { grant, people } = read_grant(signed, self.policy, &self.order.environment)?;
        let id = Grant::id(signed.text.as_bytes());
        // What it began may be ended still, or nobody could.
        let runs = matches!(self.order.action, Action::Run(_));
        if runs && self.revoked.iter().any(|revoked| revoked.orders.contains(&id)) {
            return Err(Refusal::new(Rule::Revoked, format!("scale grant {} was revoked", id.short())));
        }
        if !PublicKey::parse(&grant.key).is_ok_and(|key| self.signed.scale.has(&key)) {
            return Err(refuse("the scale grant is for another key than those that signed the order".into()));
        }
        grant.covers(self.order, context.pool, context.now).map_err(refuse)?;
        if place.is_of_people {
            return Err(refuse(format!("`{}` is here by an order of people, or its data is", self.order.app))
                .hint("`bulkhead rm --volumes` makes room, where nobody needs it"));
        }
        let mut green = BTreeSet::new();
        // What runs may be stopped whatever its image is by now.
        if let Action::Run(run) = &self.order.action {
            // Statements are about the app that was built, of which this is an instance.
            let colour = self.colour(&grant.app, run.image, context.now, place);
            let ways = ways_of_people(self.signed.environment);
            let enough = ways.filter(|demand| people.len() >= demand.release as usize);
            let Some(met) = enough.clone().find(|demand| is_green(demand, &colour)) else {
                let needs = enough.map(ToString::to_string).collect::<Vec<_>>().join(", or ");
                let message = format!(
                    "a scale grant for `{}` needs {needs}; image {} {}",
                    self.order.environment,
                    run.image.short(),
                    shown(&colour)
                );
                return Err(
                    Refusal::new(Rule::NotGreen, message).hint("CI states an image green with `bulkhead ci mark`")
                );
            };
            if met.green > 0 {
                green = colour.green;
            }
        }
        Ok(Granted { grounds: Grounds::Grant { id, by: people }, green, standing: None })
    }

    /// What is stated about an image, here and in what came.
    fn colour(&self, app: &AppName, image: ImageId, now: Timestamp, place: &Place) -> Colour {
        let colour = |statements: &[SignedText]| {
            colour(statements, self.policy, self.revoked, &self.order.fleet, app, image, now)
        };
        // What the node knows cannot be crowded out by what comes: a red mark stays.
        let brought = &self.presented.statements[..self.presented.statements.len().min(STATEMENTS_MAX)];
        colour(&place.statements).and(colour(brought))
    }

    fn meets(&self, demand: &Demand, colour: &Colour, standing: &Result<OrderId, String>) -> Option<Granted> {
        let standing = if demand.standing { Some(*standing.as_ref().ok()?) } else { None };
        // Somebody signs the whole order in any case: who brings it must not choose the sandbox.
        let is_signed = match demand.release {
            0 => self.signed.green.count() > 0,
            needed => self.signed.release.count() >= needed as usize,
        };
        let green = if demand.green > 0 { colour.green.clone() } else { BTreeSet::new() };
        (is_signed && is_green(demand, colour)).then(|| Granted {
            grounds: Grounds::Demand(demand.clone()),
            green,
            standing,
        })
    }

    fn break_glass(&self) -> Result<Granted, Refusal> {
        let environment = &self.order.environment;
        let Some(needed) = self.signed.environment.break_glass else {
            let message = format!("the policy allows no breaking of glass in `{environment}`");
            return Err(Refusal::new(Rule::BreakGlass, message)
                .hint("the policy can allow it to a number of release keys (`break_glass`)"));
        };
        if self.signed.release.count() < needed as usize {
            let needs = format!("{needed} distinct release keys to break glass");
            return Err(self.refuse(Rule::BreakGlass, &needs, &self.signed.release.presented()));
        }
        Ok(Granted::plain(Grounds::BreakGlass))
    }

    /// The standing order that covers it, or why none does.
    fn standing(&self, run: &Run, node: &NodeName, now: Timestamp, place: &Place) -> Result<OrderId, String> {
        let signed = self.presented.standing.ok_or("no standing order")?;
        let bytes = signed.text.as_bytes();
        if bytes.len() > STANDING_MAX_BYTES {
            return Err("the standing order is longer than 256 KiB".into());
        }
        let needed = self.signed.environment.people();
        let found = signers(bytes, &signed.signatures, STANDING_NAMESPACE, holders(self.policy, Role::Release));
        if found.count() < needed as usize {
            return Err(format!("a standing order that needs {needed} release key(s) and has {}", found.presented()));
        }
        let standing = StandingOrder::parse(bytes)?;
        standing.covers(self.order, run, node, now)?;
        let id = StandingOrder::id(bytes);
        if self.revoked.iter().any(|revoked| revoked.orders.contains(&id)) {
            return Err("the standing order was revoked".into());
        }
        // Whoever may choose the image must not choose what it connects to.
        if self.order.targets.get(node).is_some_and(|target| !has_known_secrets(target, place)) {
            return Err("a standing order covers no secrets other than those of what runs".into());
        }
        let used = place.uses.get(&id).copied().unwrap_or(0);
        if used >= standing.uses_max {
            return Err(format!("the standing order was used {used} times here, as often as it allows"));
        }
        Ok(id)
    }
}

fn is_green(demand: &Demand, colour: &Colour) -> bool {
    demand.green == 0 || (colour.red.is_empty() && colour.green.len() >= demand.green as usize)
}

fn shown(colour: &Colour) -> String {
    let names = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
    let mut text = if !colour.red.is_empty() {
        format!("is marked red by {}", names(&colour.red))
    } else if colour.green.is_empty() {
        "is stated green by nobody".into()
    } else {
        format!("is stated green by {}", names(&colour.green))
    };
    for note in colour.notes.iter().take(3) {
        text.push_str("; ");
        text.push_str(note);
    }
    text
}

fn check_address<'a>(
    order: &'a Order,
    fleet: &FleetName,
    environment: &EnvironmentName,
    node: &NodeName,
) -> Result<&'a Target, Refusal> {
    if order.fleet != *fleet {
        let message = format!("the order is for fleet `{}`; this node is of `{fleet}`", order.fleet);
        return Err(Refusal::new(Rule::Fleet, message));
    }
    if order.environment != *environment {
        let message = format!("the order is for environment `{}`; this node is of `{environment}`", order.environment);
        return Err(Refusal::new(Rule::Environment, message));
    }
    order.targets.get(node).ok_or_else(|| {
        let named: Vec<&str> = order.targets.keys().take(5).map(NodeName::as_str).collect();
        Refusal::new(Rule::Node, format!("the order is for {}; this node is `{node}`", named.join(", ")))
    })
}

/// Whether a document that lasts a while is of now.
pub(crate) fn check_time(
    what: &str,
    issued: Timestamp,
    not_after: Timestamp,
    context: &Context<'_>,
) -> Result<(), Refusal> {
    if context.now < context.minimum_time {
        let message = format!("the node's clock says {}, but it has known {}", context.now, context.minimum_time);
        return Err(Refusal::new(Rule::Clock, message).hint("set the node's clock right"));
    }
    if not_after <= context.now {
        let message = format!("the {what} expired at {}; the node's clock says {}", not_after, context.now);
        return Err(Refusal::new(Rule::Expired, message).hint("sign it again, or compare the clocks"));
    }
    if not_after.0.saturating_sub(issued.0) > LIFETIME_MAX_S {
        let message = format!("the {what} was issued at {} to last until {}", issued, not_after);
        return Err(Refusal::new(Rule::Expired, message).hint("it may last two hours at most; sign it again"));
    }
    if issued > context.now.plus_s(CLOCK_SKEW_S) {
        let message = format!("the {what} was issued at {}; the node's clock says {}", issued, context.now);
        return Err(Refusal::new(Rule::Expired, message).hint("compare the clocks"));
    }
    Ok(())
}

/// Whether the node knows what it ought to know before it starts anything. What runs goes on, and can be stopped.
fn check_fresh(order: &Order, environment: &Environment, context: &Context<'_>) -> Result<(), Refusal> {
    if !matches!(order.action, Action::Run(_) | Action::Start { .. } | Action::Look(_)) {
        return Ok(());
    }
    let version = context.policy.version;
    if order.policy > version {
        let message = format!("there is a policy of version {}; this node has version {version}", order.policy);
        return Err(Refusal::new(Rule::Stale, message).hint("bring it: `bulkhead policy push`"));
    }
    let Some(period) = environment.heartbeat_s else { return Ok(()) };
    let heard = context.heartbeat.map(|heartbeat| heartbeat.issued);
    if heard.is_none_or(|heard| heard.plus_s(i64::from(period)) < context.now) {
        let heard = heard.map_or_else(|| "never".into(), |heard| format!("last at {heard}"));
        let message = format!(
            "the policy demands a heartbeat every {period} seconds in `{}`; this node heard one {heard}",
            order.environment
        );
        return Err(Refusal::new(Rule::Stale, message)
            .hint("whoever holds a release or green key gives one: `bulkhead policy heartbeat`"));
    }
    Ok(())
}

fn check_revoked(order: &Order, id: OrderId, live: Option<Live>, revoked: &[&Revoked]) -> Result<(), Refusal> {
    let image: Option<ImageId> = match &order.action {
        Action::Run(run) => Some(run.image),
        Action::Look(tool) => Some(tool.image),
        // They start what is live.
        Action::Start { .. } | Action::Restart { .. } => live.map(|live| live.image),
        _ => None,
    };
    if let Some(image) = image.filter(|image| revoked.iter().any(|revoked| revoked.images.contains(image))) {
        let message = format!("image {} was revoked", image.short());
        return Err(Refusal::new(Rule::Revoked, message).hint("build a new one; what is revoked stays so"));
    }
    let brought = match &order.action {
        Action::Start { .. } | Action::Restart { .. } => live.map(|live| live.order),
        _ => None,
    };
    for id in [Some(id), brought].into_iter().flatten() {
        if revoked.iter().any(|revoked| revoked.orders.contains(&id)) {
            return Err(Refusal::new(Rule::Revoked, format!("order {} was revoked", id.short())));
        }
    }
    Ok(())
}

fn check_isolation(
    environment: &Environment,
    name: &EnvironmentName,
    offers: &BTreeSet<Isolation>,
) -> Result<(), Refusal> {
    let missing: Vec<&str> = environment.requires.difference(offers).map(|missing| missing.as_str()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!("the policy demands {} of nodes in `{name}`; this node has not got it", missing.join(", "));
    Err(Refusal::new(Rule::Isolation, message).hint("`bulkhead node ls` shows what each node offers, and why not"))
}

/// What an order is worth where the node seems to have been put back to a snapshot.
#[derive(Debug, Clone, Copy)]
struct Weight {
    /// To forbid needs less than to allow: whoever made it look so must not keep others from stopping.
    stops: bool,
    /// It carries what running something new takes. One key that may stop and go back must not make a node believe what
    /// everybody else then has to answer for.
    proves: bool,
}

fn check_place(
    target: &Target,
    app: &AppName,
    weight: Weight,
    context: &Context<'_>,
    place: &Place,
) -> Result<(), Refusal> {
    let Place { counter, previous, seen, .. } = *place;
    let floor = target.floor.unwrap_or(0);
    let reach = counter.saturating_add(FLOOR_STEP_MAX);
    if floor > reach {
        let message = format!("a floor of {floor} is more than {FLOOR_STEP_MAX} above {counter}, where `{app}` stands");
        return Err(Refusal::new(Rule::Counter, message));
    }
    let used = counter.max(floor);
    let restored = |known: u64| {
        let message = format!(
            "this node knows of {counter} orders for `{app}`, and {known} were accepted: it was put back to a snapshot"
        );
        Refusal::new(Rule::Restored, message).hint("look at its volumes too; to go on from here: `--accept-restored`")
    };
    if seen > used && !weight.stops {
        return Err(restored(seen));
    }
    // Signed in full, for this node, in time, and beyond what the node knows: it has forgotten something.
    let ahead = target.counter.saturating_sub(1);
    if ahead > used && ahead <= reach && weight.proves {
        return Err(Refusal { ahead: Some(ahead), ..restored(ahead) });
    }
    if target.boot != context.boot {
        let message = format!("the order was signed for an earlier boot of `{}`", context.node);
        return Err(Refusal::new(Rule::Boot, message).hint("sign it again"));
    }
    if used.checked_add(1) != Some(target.counter) {
        let message = format!("the order is number {} for `{app}` here; the last accepted was {used}", target.counter);
        return Err(Refusal::new(Rule::Counter, message).hint("another order came first, or this one was used already"));
    }
    if target.previous != previous {
        let name = |id: Option<OrderId>| id.map_or_else(|| "none".into(), |id| id.short());
        let message = format!(
            "the order follows order {}; the last accepted for `{app}` was {}",
            name(target.previous),
            name(previous)
        );
        return Err(Refusal::new(Rule::Previous, message).hint("look at what was deployed since, then sign again"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
